"""The public keys of WireGuard's private keys: X25519 with the base point (RFC 7748, section 6.1).

libcrypto computes them in constant time. The Python of cni/daemon/model/keys.py is used if there is no libcrypto, or if
it refuses X25519 (FIPS): that code is not constant-time. Requests that make the daemon compute a key come over unix
sockets that only root and the group `zlayer` can open, so a remote observer cannot time it.
"""

from __future__ import annotations

import base64
import functools
import logging
from collections.abc import Callable

from cni.daemon.model import keys
from cni.host.libcrypto import Libcrypto

log = logging.getLogger(__name__)


@functools.cache
def engine() -> Callable[[bytes], bytes]:
    """The function from a private to a public key, 32 bytes each: libcrypto's, else Python's. Chosen at first use."""
    try:
        libcrypto = Libcrypto()
        libcrypto.x25519_public(keys.clamp(bytes(keys.KEY)))
    except OSError as error:
        log.warning("public keys are computed in Python, not in constant time: libcrypto cannot be used: %s", error)
        return keys.x25519_public
    log.info("public keys are computed by libcrypto: library=%s", libcrypto.name)
    return libcrypto.x25519_public


@functools.cache
def agreement() -> Callable[[bytes, bytes], bytes]:
    """X25519 of a private key and another's public key, 32 bytes each: libcrypto's, else Python's. Chosen at first use.
    The function raises ValueError or OSError for a public key of low order."""
    try:
        libcrypto = Libcrypto()
        libcrypto.x25519_public(keys.clamp(bytes(keys.KEY)))
    except OSError:
        return keys.x25519_shared
    return libcrypto.x25519_shared


def public_of(private: str) -> str:
    """The public key of a private key, both base64. Raises ValueError if `private` is not a key."""
    return base64.b64encode(engine()(keys.decode(private))).decode("ascii")
