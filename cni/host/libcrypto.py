"""Ed25519 and X25519 by OpenSSL's libcrypto, which the frozen program contains for TLS to etcd.

The library is opened when a node first needs its public key, or first signs or verifies. It is already mapped then,
because Python's asyncio imports TLS. `Libcrypto` raises OSError if there is no library, or if it has no raw keys
(before 1.1.1); the pure Python of cni/daemon/model/ed25519.py and keys.py is used then.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

_NAMES = ("libcrypto.so.3", "libcrypto.so.1.1")
_X25519, _ED25519 = 1034, 1087  # NID_X25519, NID_ED25519 (openssl/obj_mac.h), the same in every version
_NAMES_OF_KINDS = {_X25519: "X25519", _ED25519: "Ed25519"}
KEY, SIGNATURE = 32, 64  # bytes


class Libcrypto:
    """Ed25519 signatures and X25519 public keys. Safe from any thread: the library is its only state."""

    def __init__(self) -> None:
        """Raises OSError if no library with raw keys can be opened."""
        self._lib = _open()
        self.name = str(self._lib._name)
        """The library's file, or its name if the dynamic linker found it."""
        pointer, size, data = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p
        for name, result, arguments in (
            ("EVP_PKEY_new_raw_private_key", pointer, (ctypes.c_int, pointer, data, size)),
            ("EVP_PKEY_new_raw_public_key", pointer, (ctypes.c_int, pointer, data, size)),
            ("EVP_PKEY_get_raw_public_key", ctypes.c_int, (pointer, data, pointer)),
            ("EVP_PKEY_free", None, (pointer,)),
            ("EVP_MD_CTX_new", pointer, ()),
            ("EVP_MD_CTX_free", None, (pointer,)),
            ("EVP_DigestSignInit", ctypes.c_int, (pointer, pointer, pointer, pointer, pointer)),
            ("EVP_DigestSign", ctypes.c_int, (pointer, data, pointer, data, size)),
            ("EVP_DigestVerifyInit", ctypes.c_int, (pointer, pointer, pointer, pointer, pointer)),
            ("EVP_DigestVerify", ctypes.c_int, (pointer, data, size, data, size)),
            ("EVP_PKEY_CTX_new", pointer, (pointer, pointer)),
            ("EVP_PKEY_CTX_free", None, (pointer,)),
            ("EVP_PKEY_derive_init", ctypes.c_int, (pointer,)),
            ("EVP_PKEY_derive_set_peer", ctypes.c_int, (pointer, pointer)),
            ("EVP_PKEY_derive", ctypes.c_int, (pointer, data, pointer)),
            ("ERR_clear_error", None, ()),
        ):
            try:
                function = getattr(self._lib, name)
            except AttributeError as error:
                raise OSError(f"libcrypto has no {name}") from error
            function.restype, function.argtypes = result, arguments

    def public_of(self, seed: bytes) -> bytes:
        """The Ed25519 public key of a private one, 32 bytes each. Raises OSError, ValueError."""
        return self._public(_ED25519, seed)

    def x25519_public(self, private: bytes) -> bytes:
        """The X25519 public key of a private one, 32 bytes each, in constant time. Raises OSError, ValueError."""
        return self._public(_X25519, private)

    def x25519_shared(self, private: bytes, public: bytes) -> bytes:
        """The 32 bytes that X25519 gives for a private key and another's public key. Raises OSError, also for a public
        key of low order, and ValueError."""
        own, peer = self._private(_X25519, private), self._lib.EVP_PKEY_new_raw_public_key(_X25519, None, public, KEY)
        context = self._lib.EVP_PKEY_CTX_new(own, None)
        try:
            self._check(self._lib.EVP_PKEY_derive_init(context))
            self._check(self._lib.EVP_PKEY_derive_set_peer(context, peer))
            shared, length = ctypes.create_string_buffer(KEY), ctypes.c_size_t(KEY)
            self._check(self._lib.EVP_PKEY_derive(context, shared, ctypes.byref(length)))
            return shared.raw
        finally:
            self._lib.EVP_PKEY_CTX_free(context)
            self._lib.EVP_PKEY_free(peer)
            self._lib.EVP_PKEY_free(own)

    def _public(self, kind: int, private: bytes) -> bytes:
        key = self._private(kind, private)
        try:
            public, length = ctypes.create_string_buffer(KEY), ctypes.c_size_t(KEY)
            self._check(self._lib.EVP_PKEY_get_raw_public_key(key, public, ctypes.byref(length)))
            return public.raw
        finally:
            self._lib.EVP_PKEY_free(key)

    def sign(self, seed: bytes, message: bytes) -> bytes:
        """The Ed25519 signature, 64 bytes. Raises OSError, ValueError."""
        key = self._private(_ED25519, seed)
        context = self._lib.EVP_MD_CTX_new()
        try:
            self._check(self._lib.EVP_DigestSignInit(context, None, None, None, key))
            signature, length = ctypes.create_string_buffer(SIGNATURE), ctypes.c_size_t(SIGNATURE)
            self._check(
                self._lib.EVP_DigestSign(context, signature, ctypes.byref(length), message, len(message)),
            )
            return signature.raw[: length.value]
        finally:
            self._lib.EVP_MD_CTX_free(context)
            self._lib.EVP_PKEY_free(key)

    def verify(self, public: bytes, message: bytes, signature: bytes) -> bool:
        """Whether the Ed25519 signature of the message was made with the private key of `public`."""
        if len(public) != KEY or len(signature) != SIGNATURE:
            return False
        key = self._lib.EVP_PKEY_new_raw_public_key(_ED25519, None, public, KEY)
        if not key:
            self._lib.ERR_clear_error()
            return False
        context = self._lib.EVP_MD_CTX_new()
        try:
            if self._lib.EVP_DigestVerifyInit(context, None, None, None, key) != 1:
                return False
            return bool(self._lib.EVP_DigestVerify(context, signature, SIGNATURE, message, len(message)) == 1)
        finally:
            self._lib.ERR_clear_error()
            self._lib.EVP_MD_CTX_free(context)
            self._lib.EVP_PKEY_free(key)

    def _private(self, kind: int, raw: bytes) -> int:
        if len(raw) != KEY:
            raise ValueError(f"{len(raw)} bytes, not {KEY}")
        key = self._lib.EVP_PKEY_new_raw_private_key(kind, None, raw, KEY)
        if not key:
            self._lib.ERR_clear_error()
            raise OSError(f"libcrypto cannot use an {_NAMES_OF_KINDS[kind]} key (in FIPS mode, perhaps)")
        return int(key)

    def _check(self, result: int) -> None:
        if result != 1:
            self._lib.ERR_clear_error()
            raise OSError("libcrypto refuses an operation with a key")


def _open() -> ctypes.CDLL:
    """The library inside the frozen program, else the machine's. Raises OSError."""
    beside = getattr(sys, "_MEIPASS", "")
    if beside:
        for name in _NAMES:
            if (Path(beside) / name).exists():
                return ctypes.CDLL(str(Path(beside) / name))
    problems = []
    for name in _NAMES:
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            problems.append(str(error))
    raise OSError("; ".join(problems))
