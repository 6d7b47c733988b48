"""What every part of `OverlayManager` stands on: its settings, what it remembers, and how it asks."""

import logging
import threading
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from cni.overlay import wire
from cni.overlay.address import canonical_ip, network, split_socket_address
from cni.overlay.client import Client, Deadline, Dialing, OnEvent, op_name
from cni.overlay.errors import CodecError, OverlaydError, Unexpected
from cni.overlay.peering import Ledger
from cni.overlay.session import Session

log = logging.getLogger("cni.overlay")

DEFAULT_CLUSTER_CIDR = "10.200.0.0/16"
DEFAULT_WG_PORT = 51420
_LONGEST = 366 * 86400.0
"""Seconds. The operating system's own timers end somewhere above it."""

R = TypeVar("R")


@dataclass(frozen=True)
class Timeouts:
    """Seconds a call may take, dialling and the second try included: more than 0, and there is no "for ever".

    Raises ValueError for anything else.
    """

    call: float = 30.0
    nat_tick: float = 120.0
    """Upstream's first tick asks STUN servers, and was seen to need over 60 s when none is reached."""

    def __post_init__(self) -> None:
        for seconds in (self.call, self.nat_tick):
            if not 0 < seconds <= _LONGEST:
                raise ValueError(f"a call cannot take {seconds} seconds")


@dataclass(frozen=True)
class Settings:
    """What an `OverlayManager` was told about its node. Changed by replacing it."""

    deployment: str
    instance_id: str
    port: int = DEFAULT_WG_PORT
    node_id: int = 0
    wg_pubkey: str | None = None
    host_adapter_mandatory: bool = False
    nat: wire.NatConfig | None = None
    relay_credential: str | None = None
    dns_server_addr: str | None = None
    dns_domain: str | None = None
    timeouts: Timeouts = field(default_factory=Timeouts)


@dataclass
class Remembered:
    """What the daemon said last. Never cleared by an answer that leaves something out."""

    cluster_cidr: str = DEFAULT_CLUSTER_CIDR
    slice_cidr: str | None = None
    interface: str | None = None
    node_ip: str | None = None
    setup: wire.SetupGlobalOverlay | None = None
    """The setup that succeeded, for doing it again on a new connection."""

    def refresh(self, status: wire.Status) -> None:
        """Take from a status what is there and can be used (contract 3.4, the internal refresh)."""
        self.interface = status.interface or self.interface
        self.node_ip = status.node_ip or self.node_ip
        self.cluster_cidr = _cidr(status.overlay_cidr) or self.cluster_cidr
        self.slice_cidr = _cidr(status.slice_cidr) or self.slice_cidr


class Calls:
    """The common ground of the manager's methods. Safe to use from several threads."""

    def __init__(
        self, settings: Settings, remembered: Remembered, path: str, dialing: Dialing, on_event: OnEvent | None
    ) -> None:
        self._settings = settings
        self._remembered = remembered
        self._dialing = dialing
        self._on_event = on_event
        self._ledger = Ledger()
        self._peers = threading.Lock()
        self._hcn: dict[str, tuple[str, str]] = {}
        self._session = Session(path, dialing, self._reestablish, on_event)

    # What is remembered; nothing here asks the daemon.

    @property
    def deployment(self) -> str:
        """The deployment's name."""
        return self._settings.deployment

    @property
    def overlay_port(self) -> int:
        """The UDP port of the global device."""
        return self._settings.port

    @property
    def cluster_cidr(self) -> str:
        """The cluster's range, as the daemon last said it, else as configured."""
        return self._remembered.cluster_cidr

    @property
    def slice_cidr(self) -> str | None:
        """This node's slice of it, likewise."""
        return self._remembered.slice_cidr

    @property
    def node_ip(self) -> str | None:
        """This node's address, once a setup has told."""
        return self._remembered.node_ip

    @property
    def global_interface(self) -> str | None:
        """The global device's name, from the setup until `cleanup`."""
        return self._remembered.interface

    @property
    def has_global_transport(self) -> bool:
        """Whether the global overlay is up, as far as this object knows."""
        return self._remembered.interface is not None

    @property
    def dns_server_addr(self) -> str | None:
        """The resolver, as it was given."""
        return self._settings.dns_server_addr

    @property
    def dns_domain(self) -> str | None:
        """The search domains, separated by spaces."""
        return self._settings.dns_domain

    def overlay_cidr(self) -> str:
        """The cluster's range, or the default one."""
        return self._remembered.cluster_cidr or DEFAULT_CLUSTER_CIDR

    def _change(self, **changes: Any) -> None:
        self._settings = replace(self._settings, **changes)

    def _deadline(self, request: wire.AnyRequest | None = None) -> Deadline:
        timeouts = self._settings.timeouts
        return Deadline(timeouts.nat_tick if isinstance(request, wire.NatTick) else timeouts.call)

    def _call(self, request: wire.AnyRequest, deadline: Deadline | None = None) -> wire.AnyReply:
        """One request, any answer that is not `err`. Raises what `Session.run` raises."""
        until = deadline or self._deadline(request)
        return self._session.run(lambda conn: conn.round_trip(request, until), until)

    def _ask(self, request: wire.AnyRequest, kind: type[R]) -> R:
        """One request whose answer must be of that kind. Raises Unexpected for any other."""
        return expect(request, self._call(request), kind)

    def _try(self, request: wire.AnyRequest, deadline: Deadline | None = None) -> wire.AnyReply | None:
        """One request whose failure is logged and otherwise ignored: then None."""
        try:
            return self._call(request, deadline)
        except OverlaydError as e:
            log.warning("%s: %s", op_name(request), e)
            return None

    def _reestablish(self, conn: Client, deadline: Deadline) -> None:
        """Tell a daemon on a new connection what this node is, if it was told before (contract 3.3).

        Each step as well as it goes, and straight on the connection, so that it cannot call for itself again.
        Services, attachments, peers, names and fences are not given again.
        """
        if self._remembered.interface is None or self._remembered.setup is None:
            return
        steps: list[wire.AnyRequest] = [wire.SetLocalNodeId(self._settings.node_id)]
        if self._settings.wg_pubkey is not None:
            steps.append(wire.SetLocalWgPubkey(self._settings.wg_pubkey))
        for request in [*steps, self._remembered.setup]:
            try:
                conn.round_trip(request, deadline)
            except (OverlaydError, CodecError) as e:
                log.warning("%s after reconnecting: %s", op_name(request), e)
            else:
                log.info("%s done again after reconnecting", op_name(request))

    def _dns(self, domain: str | None) -> tuple[str | None, str | None]:
        """The resolver and search domains an attach names: the cached resolver, `domain` before the cached."""
        server = self._settings.dns_server_addr
        return (
            None if server is None else host_of(server),
            self._settings.dns_domain if domain is None else domain,
        )


def expect(request: wire.AnyRequest, reply: wire.AnyReply, kind: type[R]) -> R:
    """`reply`, if it is of that kind. Raises Unexpected."""
    if not isinstance(reply, kind):
        raise Unexpected(f"overlayd {op_name(request)} returned unexpected response: {reply!r}")
    return reply


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
