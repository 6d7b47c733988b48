"""WireGuard keys: made, derived and spelled. X25519 as RFC 7748, section 5, says; in Python, for a key now and then.

It is not constant in time; nobody measures a daemon that makes a key in a millisecond on its own socket's request.
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
    """A fresh private key, base64."""
    return base64.b64encode(clamp(os.urandom(KEY))).decode("ascii")


def clamp(raw: bytes) -> bytes:
    """`raw` with the bits set and cleared that every X25519 private key has so."""
    return bytes([raw[0] & 248]) + raw[1:31] + bytes([raw[31] & 127 | 64])


def public_of(private: str) -> str:
    """The public key of a private one, both base64. Raises ValueError for what is no key."""
    return base64.b64encode(x25519(decode(private), _BASE)).decode("ascii")


def decode(key: str) -> bytes:
    """The 32 bytes of a base64 key. Raises ValueError."""
    try:
        raw = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not base64") from None
    if len(raw) != KEY:
        raise ValueError(f"{len(raw)} bytes, not {KEY}")
    return raw


def canonical(key: str) -> str:
    """The one spelling of a base64 key: loose bits at its end do not make it another peer's. Raises ValueError."""
    return base64.b64encode(decode(key)).decode("ascii")


def x25519(scalar: bytes, u: int) -> bytes:
    """The Montgomery ladder: `scalar` times the point with coordinate `u`."""
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
