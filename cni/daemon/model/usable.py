"""What of a peer can be used, whoever described it: pure.

One endpoint that cannot be called, or one CIDR that is none, must not keep the other peers from their device.
"""

from __future__ import annotations

import functools
from dataclasses import replace

from cni.daemon.model.endpoints import can_be_called
from cni.daemon.model.wireguard import Target, network_of


def usable(target: Target) -> tuple[Target, tuple[str, ...]]:
    """The target without what cannot be used, and what that is. The very same target where nothing is wrong."""
    bad = {each for each in target.endpoints if not _is_endpoint(each)}
    bad |= {each for each in (*target.allowed_ips, *target.led()) if not _is_network(each)}
    if not bad:
        return target, ()
    kept = replace(
        target,
        endpoints=tuple(each for each in target.endpoints if each not in bad),
        allowed_ips=tuple(each for each in target.allowed_ips if each not in bad),
        routes=None if target.routes is None else tuple(each for each in target.routes if each not in bad),
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
