"""WireGuard keys: generation and encoding; and X25519 (RFC 7748, section 5) in Python, for a machine without OpenSSL's
libcrypto (cni/daemon/public_keys.py chooses). The Python code is not constant-time, and takes a millisecond a key.
"""

from __future__ import annotations

import base64
import binascii
import os

KEY = 32  # bytes
_P = 2**255 - 19
_A24 = 121665
_BASE = 9


def generate() -> str:
    """A new private key, base64."""
    return base64.b64encode(clamp(os.urandom(KEY))).decode("ascii")


def clamp(raw: bytes) -> bytes:
    """`raw` (32 bytes) with the bits set and cleared that RFC 7748, section 5, fixes in an X25519 private key."""
    return bytes([raw[0] & 248]) + raw[1:31] + bytes([raw[31] & 127 | 64])


def decode(key: str) -> bytes:
    """The 32 bytes of a base64 key. Raises ValueError if `key` is not base64 or not 32 bytes."""
    try:
        raw = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not base64") from None
    if len(raw) != KEY:
        raise ValueError(f"{len(raw)} bytes, not {KEY}")
    return raw


def canonical(key: str) -> str:
    """The canonical spelling of a base64 key: unused bits at its end do not make a different key. Raises ValueError."""
    return base64.b64encode(decode(key)).decode("ascii")


def x25519_public(private: bytes) -> bytes:
    """The public key of a private key, 32 bytes each."""
    return x25519(private, _BASE)


def x25519_shared(private: bytes, public: bytes) -> bytes:
    """What X25519 gives for a private key and another's public key, 32 bytes each. Raises ValueError for a public key
    of low order (RFC 7748, section 6.1)."""
    shared = x25519(private, int.from_bytes(public, "little") & (1 << 255) - 1)
    if not any(shared):
        raise ValueError("a public key of low order")
    return shared


def x25519(scalar: bytes, u: int) -> bytes:
    """`scalar` (32 bytes) times the point with coordinate `u`, by the Montgomery ladder. Returns 32 bytes."""
    k = int.from_bytes(clamp(scalar), "little")
    x2, z2, x3, z3, swap = 1, 0, u, 1, 0
    for t in range(254, -1, -1):
        bit = k >> t & 1
        if bit != swap:
            x2, z2, x3, z3 = x3, z3, x2, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a % _P, b * b % _P, d * a % _P, c * b % _P
        e = aa - bb
        x3, z3 = (da + cb) ** 2 % _P, u * (da - cb) ** 2 % _P
        x2, z2 = aa * bb % _P, e * (aa + _A24 * e) % _P
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, _P - 2, _P) % _P).to_bytes(KEY, "little")
