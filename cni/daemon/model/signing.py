"""The key with which a node signs its records in the cluster's store, and the form of a signed record.

A signed record is JSON whose first member is the signature:

    {"signature":"<base64>","signer":"<64 hexadecimal digits>", ...}

The signed bytes are the line `zlayer-cni record 1`, the line with the record's whole key, and the value without its
first member: `{` and everything after the comma. Verification serialises nothing again, so fields that a later version
adds are covered, and an earlier version skips them.

An identity that was made together with its key is `k` and the first 40 hexadecimal digits of the SHA-256 of the public
key: no other key can sign for it. An identity from before the introduction of signatures belongs to the first key that
signs for it, for as long as the node is known.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import re
from typing import Protocol

from cni.daemon.model import ed25519
from cni.host.libcrypto import Libcrypto

SEED = 32  # bytes of a private key
_HEAD = re.compile(rb'\{"signature":"([A-Za-z0-9+/]{86}==)",')
_CERTIFIED = re.compile(r"k[0-9a-f]{40}")


class Engine(Protocol):
    """An implementation of Ed25519: libcrypto or Python."""

    def public_of(self, seed: bytes) -> bytes: ...
    def sign(self, seed: bytes, message: bytes) -> bytes: ...
    def verify(self, public: bytes, message: bytes, signature: bytes) -> bool: ...


class Python:
    """RFC 8032 in Python, for a machine without libcrypto."""

    public_of = staticmethod(ed25519.public_of)
    sign = staticmethod(ed25519.sign)
    verify = staticmethod(ed25519.verify)


@functools.cache
def engine() -> Engine:
    """libcrypto if it is available and supports Ed25519, else Python. Chosen once, at first use."""
    try:
        libcrypto = Libcrypto()
        libcrypto.public_of(bytes(SEED))
    except OSError:
        return Python()
    return libcrypto


def generate() -> bytes:
    """A new private key of `SEED` bytes."""
    return os.urandom(SEED)


def identity_of(public: bytes) -> str:
    """The identity of a public key."""
    return "k" + hashlib.sha256(public).hexdigest()[:40]


def may_sign(identity: str, signer: str) -> bool:
    """Whether the key (hexadecimal) can belong to an identity. Any key can, if the identity is older than
    signatures."""
    if not _CERTIFIED.fullmatch(identity):
        return True
    try:
        return identity_of(bytes.fromhex(signer)) == identity
    except ValueError:
        return False


def must_sign(identity: str) -> bool:
    """Whether an identity was made together with its key, so that an unsigned record cannot be its own."""
    return _CERTIFIED.fullmatch(identity) is not None


class Signer:
    """Signs with a node's own key."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self.public = engine().public_of(seed)

    @property
    def name(self) -> str:
        """The public key in hexadecimal digits, as in records."""
        return self.public.hex()

    def sealed(self, key: str, value: bytes) -> bytes:
        """The JSON object `value`, signed for the key `key` of the store. Raises ValueError if it is no object with a
        member."""
        if not value.startswith(b"{") or value == b"{}":
            raise ValueError("only a JSON object with a member can be signed")
        signature = base64.b64encode(engine().sign(self._seed, _message(key, value))).decode()
        return b'{"signature":"' + signature.encode() + b'",' + value[1:]


def is_signed(value: bytes) -> bool:
    """Whether the record has a signature, valid or not."""
    return _HEAD.match(value) is not None


def verify(key: str, value: bytes, signer: str) -> bool:
    """Whether the record at `key` has a valid signature of the public key `signer` (hexadecimal)."""
    head = _HEAD.match(value)
    if head is None:
        return False
    try:
        public = bytes.fromhex(signer)
    except ValueError:
        return False
    return engine().verify(public, _message(key, b"{" + value[head.end() :]), base64.b64decode(head[1]))


def _message(key: str, value: bytes) -> bytes:
    return b"zlayer-cni record 1\n" + key.encode() + b"\n" + value
