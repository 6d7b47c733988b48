"""The request of one attach, in the form that both sockets make."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cni.daemon.model.records import AttachmentKey, StaticRoute
from cni.errors import CniError
from cni.host.netns import NetnsId
from cni.openings import NOTHING, ListedOpenings


class ClientGone(CniError):
    """The client closed its connection before the answer: the work is undone."""

    code = 11


@dataclass(frozen=True)
class AttachRequest:
    """One attach, fully decided by the caller, which is one of the two sockets. The caller closes `netns_fd`.

    `mtu`: bytes, 0 for the default; `mac`: "" for the one that follows from the address; `forbidden`: the namespaces
    that must not be attached; `attach`: the kind of attach, "" for that of the service; `opens`: what the network list
    opens; `asker`: the Kubernetes namespace whose limit on new services counts, "" for none; `caller_waits` returns
    False when the client has closed its connection.
    """

    network: str
    container: str
    ifname: str
    netns_fd: int
    netns: NetnsId
    sandbox: str
    service: str
    mode: str
    host_veth: str
    isolation: str | None = None
    ephemeral: bool = False
    mtu: int = 0
    mac: str = ""
    addresses: Sequence[ipaddress.IPv4Address | ipaddress.IPv6Address] = ()
    routes: Sequence[StaticRoute] = ()
    attempt: str = ""
    pid: int = 0
    start_time: int = 0
    pod: str = ""
    pod_uid: str = ""
    aliases: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    forbidden: frozenset[NetnsId] = frozenset()
    asker: str = ""
    attach: str = ""
    opens: ListedOpenings = NOTHING
    caller_waits: Callable[[], bool] = lambda: True

    @property
    def key(self) -> AttachmentKey:
        return (self.network, self.container, self.ifname)
