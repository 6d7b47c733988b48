"""The key with which a node signs what it writes into the cluster's store, and how a record is signed.

A signed record is JSON whose first member is the signature:

    {"signature":"<base64>","signer":"<64 hexadecimal digits>", ...}

What is signed is, as bytes: the line `zlayer-cni record 1`, the line with the record's whole key, and the value
without its first member: `{` and all that follows the comma. Nothing is serialised anew to verify it, so fields that a
later version adds are covered, and an earlier one skips them.

An identity that was made together with its key is `k` and the first 40 hexadecimal digits of the SHA-256 of the public
key: no other key can speak for it. An identity from before there were signatures belongs to the first key that signed
for it, as long as the node is known.
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
    """Who computes: libcrypto, or Python."""

    def public_of(self, seed: bytes) -> bytes: ...
    def sign(self, seed: bytes, message: bytes) -> bytes: ...
    def verify(self, public: bytes, message: bytes, signature: bytes) -> bool: ...


class Python:
    """RFC 8032 in Python: what a machine without libcrypto has."""

    public_of = staticmethod(ed25519.public_of)
    sign = staticmethod(ed25519.sign)
    verify = staticmethod(ed25519.verify)


@functools.cache
def engine() -> Engine:
    """libcrypto where it can be had and knows the key type, else Python. Chosen once, when first needed."""
    try:
        found = Libcrypto()
        found.public_of(bytes(SEED))
    except OSError:
        return Python()
    return found


def generate() -> bytes:
    """A fresh private key."""
    return os.urandom(SEED)


def identity_of(public: bytes) -> str:
    """The identity that belongs to a public key."""
    return "k" + hashlib.sha256(public).hexdigest()[:40]


def may_sign(identity: str, signer: str) -> bool:
    """Whether the key (hexadecimal) can be that of an identity. Any can, of an identity from before there were any."""
    if not _CERTIFIED.fullmatch(identity):
        return True
    try:
        return identity_of(bytes.fromhex(signer)) == identity
    except ValueError:
        return False


def must_sign(identity: str) -> bool:
    """Whether an identity is one that was made with its key, so that an unsigned record cannot be its own."""
    return _CERTIFIED.fullmatch(identity) is not None


class Signer:
    """A node's own key."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self.public = engine().public_of(seed)

    @property
    def name(self) -> str:
        """The public key in hexadecimal digits, as records name it."""
        return self.public.hex()

    def sealed(self, key: str, value: bytes) -> bytes:
        """The JSON object `value`, signed for the place `key`. Raises ValueError for what is no object."""
        if not value.startswith(b"{") or value == b"{}":
            raise ValueError("only a JSON object with a member can be signed")
        signature = base64.b64encode(engine().sign(self._seed, _message(key, value))).decode()
        return b'{"signature":"' + signature.encode() + b'",' + value[1:]


def is_signed(value: bytes) -> bool:
    """Whether the record has a signature, right or not."""
    return _HEAD.match(value) is not None


def verify(key: str, value: bytes, signer: str) -> bool:
    """Whether the record at `key` was signed by that public key (hexadecimal)."""
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
