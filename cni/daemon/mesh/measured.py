"""The paths to peers, as the mesh has measured them, and the peers to measure them to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cni.addresses import Address
from cni.daemon.model.endpoints import address_of
from cni.daemon.model.path_search import Bounds


@dataclass(frozen=True, slots=True)
class ProbedPeer:
    """A peer whose path is measured. `addresses`: those behind the peer that may answer; `alive`: the peer has a
    session; `sent`: bytes that the device has sent to the peer; `told_at`: when the kernel was last told of an MTU of
    the path, in seconds of the monotonic clock."""

    addresses: tuple[Address, ...]
    bounds: Bounds
    alive: bool
    sent: int
    endpoint: str = ""
    told_at: float = 0.0


@dataclass(frozen=True, slots=True)
class MeasuredPath:
    """The largest packet, in bytes, that passes the tunnel to a peer. `full`: the largest that was tried; `endpoint`:
    where the peer was called; `at`: when it was last confirmed, in seconds of the monotonic clock (0: by an earlier
    daemon); `too_narrow`: the path does not carry `size` without fragments."""

    size: int
    full: int
    endpoint: str = ""
    at: float = 0.0
    too_narrow: bool = False

    @property
    def is_narrow(self) -> bool:
        """Whether less than the full size passes."""
        return self.size < self.full


@dataclass(frozen=True)
class MeasuredPaths:
    """The paths by public key, and the narrowest by address of the underlay."""

    by_key: Mapping[str, MeasuredPath] = field(default_factory=dict)
    by_address: Mapping[Address, MeasuredPath] = field(init=False)

    def __post_init__(self) -> None:
        narrowest: dict[Address, MeasuredPath] = {}
        for path in self.by_key.values():
            address = address_of(path.endpoint) if path.endpoint else None
            if address is not None and (address not in narrowest or path.size < narrowest[address].size):
                narrowest[address] = path
        object.__setattr__(self, "by_address", narrowest)

    @property
    def too_narrow(self) -> bool:
        """Whether any path needs fragments."""
        return any(path.too_narrow for path in self.by_key.values())

    def of(self, key: str, address: Address | None) -> MeasuredPath | None:
        """The measurement for a peer: its own, or that of another peer at the same address (a dedicated device)."""
        own = self.by_key.get(key)
        return own if own is not None or address is None else self.by_address.get(address)


class Measurements:
    """The present measurements. Each value is replaced as a whole, so any thread may read them."""

    def __init__(self) -> None:
        self._paths = MeasuredPaths()

    def paths(self) -> MeasuredPaths:
        """The present measurements; the value never changes."""
        return self._paths

    def put(self, paths: MeasuredPaths) -> None:
        """Replace all measurements."""
        self._paths = paths

    def restore(self, sizes: Mapping[str, int]) -> None:
        """Take over what an earlier daemon measured of the narrow paths, by public key."""
        self._paths = MeasuredPaths({key: MeasuredPath(size, size + 1) for key, size in sizes.items()})
