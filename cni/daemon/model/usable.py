"""Removes the unusable parts of a peer, whatever its source. Pure.

One invalid endpoint or CIDR must not keep the other peers from their device.
"""

from __future__ import annotations

import functools
from dataclasses import replace

from cni.daemon.model.endpoints import can_be_called
from cni.daemon.model.wireguard import Target, network_of


def usable(target: Target) -> tuple[Target, tuple[str, ...]]:
    """The target without its unusable endpoints and CIDRs, and those. Returns the same object if all are usable."""
    bad = {endpoint for endpoint in target.endpoints if not _is_endpoint(endpoint)}
    bad |= {cidr for cidr in (*target.allowed_ips, *target.led()) if not _is_network(cidr)}
    if not bad:
        return target, ()
    kept = replace(
        target,
        endpoints=tuple(endpoint for endpoint in target.endpoints if endpoint not in bad),
        allowed_ips=tuple(cidr for cidr in target.allowed_ips if cidr not in bad),
        routes=None if target.routes is None else tuple(cidr for cidr in target.routes if cidr not in bad),
    )
    return kept, tuple(sorted(bad))


@functools.lru_cache(1 << 16)
def _is_endpoint(text: str) -> bool:
    return can_be_called(text)


@functools.lru_cache(1 << 16)
def _is_network(text: str) -> bool:
    try:
        network_of(text)
    except ValueError:
        return False
    return True
