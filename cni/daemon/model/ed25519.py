"""Ed25519 (RFC 8032, section 5.1) in Python, for a machine without OpenSSL's libcrypto (cni/host/libcrypto.py).

It is not constant-time: it signs only what the node itself publishes, a few times a minute at most.
"""

from __future__ import annotations

import hashlib

_P = 2**255 - 19
_L = 2**252 + 27742317777372353535851937790883648493  # the order of the base point
_D = -121665 * pow(121666, _P - 2, _P) % _P
_I = pow(2, (_P - 1) // 4, _P)  # a square root of -1

Point = tuple[int, int, int, int]  # extended coordinates (X, Y, Z, T): x = X/Z, y = Y/Z, x y = T/Z


def public_of(seed: bytes) -> bytes:
    """The public key of a private key, 32 bytes each."""
    scalar, _ = _expanded(seed)
    return _encode(_times(scalar, _BASE))


def sign(seed: bytes, message: bytes) -> bytes:
    """The signature of the message, 64 bytes. Raises ValueError if `seed` is not 32 bytes."""
    scalar, prefix = _expanded(seed)
    public = _encode(_times(scalar, _BASE))
    r = _number(prefix + message) % _L
    point = _encode(_times(r, _BASE))
    s = (r + _number(point + public + message) * scalar) % _L
    return point + s.to_bytes(32, "little")


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` is the signature of the message by the key `public`."""
    if len(public) != 32 or len(signature) != 64:
        return False
    key, point = _decode(public), _decode(signature[:32])
    s = int.from_bytes(signature[32:], "little")
    if key is None or point is None or s >= _L:
        return False
    h = _number(signature[:32] + public + message) % _L
    return _same(_times(s, _BASE), _add(point, _times(h, key)))


def _expanded(seed: bytes) -> tuple[int, bytes]:
    """The scalar, and the secret from which nonces are derived."""
    if len(seed) != 32:
        raise ValueError(f"{len(seed)} bytes, not 32")
    digest = hashlib.sha512(seed).digest()
    scalar = int.from_bytes(digest[:32], "little")
    return scalar & ((1 << 254) - 8) | 1 << 254, digest[32:]


def _number(data: bytes) -> int:
    return int.from_bytes(hashlib.sha512(data).digest(), "little")


def _add(one: Point, two: Point) -> Point:
    a = (one[1] - one[0]) * (two[1] - two[0]) % _P
    b = (one[1] + one[0]) * (two[1] + two[0]) % _P
    c = 2 * one[3] * two[3] * _D % _P
    d = 2 * one[2] * two[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _times(scalar: int, point: Point) -> Point:
    product: Point = (0, 1, 1, 0)
    while scalar:
        if scalar & 1:
            product = _add(product, point)
        point = _add(point, point)
        scalar >>= 1
    return product


def _same(one: Point, two: Point) -> bool:
    return (one[0] * two[2] - two[0] * one[2]) % _P == 0 and (one[1] * two[2] - two[1] * one[2]) % _P == 0


def _encode(point: Point) -> bytes:
    inverse = pow(point[2], _P - 2, _P)
    x, y = point[0] * inverse % _P, point[1] * inverse % _P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def _decode(raw: bytes) -> Point | None:
    """The point; None if `raw` encodes no point."""
    number = int.from_bytes(raw, "little")
    y, sign_ = number & ((1 << 255) - 1), number >> 255
    x = _x_of(y, sign_) if y < _P else None
    return None if x is None else (x, y, 1, x * y % _P)


def _x_of(y: int, sign_: int) -> int | None:
    square = (y * y - 1) * pow(_D * y * y + 1, _P - 2, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if (x * x - square) % _P:
        x = x * _I % _P
    if (x * x - square) % _P or (x == 0 and sign_):
        return None
    return _P - x if x & 1 != sign_ else x


def _base() -> Point:
    y = 4 * pow(5, _P - 2, _P) % _P
    x = _x_of(y, 0)
    assert x is not None
    return x, y, 1, x * y % _P


_BASE = _base()
