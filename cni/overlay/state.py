"""What one `OverlayManager` was told, and what its daemon said last. Values; nothing here is sent."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from cni import defaults
from cni.overlay import wire
from cni.overlay.address import canonical_ip, network, split_socket_address
from cni.overlay.client import Dialing
from cni.overlay.nat import NatSettings

DEFAULT_CLUSTER_CIDR = "10.200.0.0/16"
DEFAULT_WG_PORT = defaults.WG_PORT
_LONGEST = 366 * 86400.0
"""Seconds. The operating system's own timers end somewhere above it."""


@dataclass(frozen=True)
class Timeouts:
    """Seconds a call may take, dialling and the second try included: more than 0, at most 366 days.

    Raises ValueError for anything else.
    """

    call: float = 30.0
    nat_tick: float = 120.0
    """The first tick of ZLayer's daemon asks STUN servers, and was measured at over 60 s when none is reached."""

    def __post_init__(self) -> None:
        for seconds in (self.call, self.nat_tick):
            if not 0 < seconds <= _LONGEST:
                raise ValueError(f"a call cannot take {seconds} seconds")


@dataclass(frozen=True)
class Settings:
    """What an `OverlayManager` was told about its node and its daemon."""

    deployment: str
    instance_id: str
    socket: str
    """The path of the daemon's socket, or the name of its pipe."""
    overlay_port: int = DEFAULT_WG_PORT
    node_id: int = 0
    wg_pubkey: str | None = None
    host_adapter_mandatory: bool = False
    nat: NatSettings | None = None
    relay_credential: str | None = None
    dns_server_addr: str | None = None
    dns_domain: str | None = None
    timeouts: Timeouts = field(default_factory=Timeouts)
    dialing: Dialing = field(default_factory=Dialing)

    def dns(self, domain: str | None) -> tuple[str | None, str | None]:
        """(resolver without its port, search domains) for an attach; `domain`, if given, replaces the cached one."""
        server = self.dns_server_addr
        return None if server is None else host_of(server), self.dns_domain if domain is None else domain


@dataclass(frozen=True)
class Cached:
    """What the daemon said last, or for the ranges what the manager was built with."""

    cluster_cidr: str = DEFAULT_CLUSTER_CIDR
    slice_cidr: str | None = None
    interface: str | None = None
    node_ip: str | None = None

    def refreshed(self, status: wire.Status) -> "Cached":
        """With what a status holds and can be parsed. A field that the status leaves out keeps its value."""
        return Cached(
            interface=status.interface or self.interface,
            node_ip=status.node_ip or self.node_ip,
            cluster_cidr=_cidr(status.overlay_cidr) or self.cluster_cidr,
            slice_cidr=_cidr(status.slice_cidr) or self.slice_cidr,
        )


class NodeState:
    """The current `Settings` and `Cached` of one manager, shared by its parts. Safe to use from several threads."""

    def __init__(self, settings: Settings, cached: Cached) -> None:
        self._lock = threading.Lock()
        self._settings = settings
        self._cached = cached

    @property
    def settings(self) -> Settings:
        """The settings as they are now."""
        return self._settings

    @property
    def cached(self) -> Cached:
        """What the daemon said last."""
        return self._cached

    def change(self, edit: Callable[[Settings], Settings]) -> None:
        """Replace the settings by `edit(settings)`."""
        with self._lock:
            self._settings = edit(self._settings)

    def refresh(self, status: wire.Status) -> None:
        """Take over what a status says."""
        with self._lock:
            self._cached = self._cached.refreshed(status)

    def name_interface(self, name: str) -> None:
        """The global device has this name from now on."""
        with self._lock:
            self._cached = replace(self._cached, interface=name)

    def forget_interface(self) -> None:
        """The global device is gone. Node address and ranges stay cached."""
        with self._lock:
            self._cached = replace(self._cached, interface=None)


def host_of(server: str) -> str:
    """The address in `address:port` or `address`. Raises ValueError for anything else."""
    try:
        return split_socket_address(server)[0]
    except ValueError:
        return canonical_ip(server)


def _cidr(text: str | None) -> str | None:
    try:
        return text if text and network(text) else None
    except ValueError:
        return None
