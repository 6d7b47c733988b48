"""`OverlayManager`'s methods for attaching and detaching, one pair for each kind of handle (contract 3.4).

Where the caller gives no `dns_*` value, an attach names the cached resolver and search domains (`set_dns_config`).
Search domains may be several, separated by spaces.
"""

from cni.overlay import wire
from cni.overlay.channel import Channel
from cni.overlay.hcn import HcnAttachments
from cni.overlay.state import NodeState


class Containers:
    """Attach and detach."""

    def __init__(self, channel: Channel, state: NodeState, hcn: HcnAttachments) -> None:
        self._channel = channel
        self._state = state
        self._hcn = hcn

    def attach_container(  # noqa: PLR0917  (the order of ZLayer's own client, contract 3.4)
        self,
        container_pid: int,
        service_name: str,
        join_global: bool = False,
        ephemeral: bool = False,
        isolation_network: str | None = None,
        dns_domain_override: str | None = None,
    ) -> str:
        """Attach the network namespace of a living process; returns the address of its eth0.

        The process must live as long as the attachment, and one process is one attachment (contract 7.2);
        `container_pid` is as the daemon counts. The service has been set up before. `isolation_network` admits the
        container to that network and fences it from all other addresses of the overlay; "" is a name like any other,
        None does not fence it. `ephemeral`: the service goes with its last container. `join_global`: a second leg,
        with ZLayer's daemon.

        Raises OverlaydError. After a DeadlinePassed the daemon may have attached it all the same: detach.
        """
        server, domain = self._state.settings.dns(dns_domain_override)
        request = wire.AttachContainer(
            wire.LinuxPid(container_pid), service_name, join_global, ephemeral, isolation_network, server, domain
        )
        return self._channel.ask(request, wire.Attached).ip

    def attach_container_guest(
        self,
        id: str,
        service_name: str,
        join_global: bool = False,
        isolation_network: str | None = None,
        dns_domain_override: str | None = None,
    ) -> wire.GuestConfig:
        """Make a guest a peer of this node; returns what it needs to bring WireGuard up itself.

        `id` is the caller's name for the guest. The global overlay has been set up before. Raises OverlaydError.
        """
        server, domain = self._state.settings.dns(dns_domain_override)
        request = wire.AttachContainer(
            wire.GuestManaged(id), service_name, join_global, False, isolation_network, server, domain
        )
        return self._channel.ask(request, wire.GuestConfig)

    def attach_container_host_shared(
        self,
        container_id: str,
        service_name: str,
        ephemeral: bool = False,
        isolation_network: str | None = None,
        dns_domain_override: str | None = None,
    ) -> str:
        """Give a process in the host's namespace an address of the node's slice; returns it.

        `container_id` is the caller's name for the process, no PID. The global overlay has been set up before.
        `join_global` is always sent as true. Raises OverlaydError.
        """
        server, domain = self._state.settings.dns(dns_domain_override)
        request = wire.AttachContainer(
            wire.HostShared(container_id), service_name, True, ephemeral, isolation_network, server, domain
        )
        return self._channel.ask(request, wire.Attached).ip

    def attach_container_hcn(  # noqa: PLR0917
        self,
        container_id: str,
        service_name: str,
        ip_override: str | None = None,
        autoclean: bool = False,
        isolation_network: str | None = None,
        dns_server: str | None = None,
        dns_domain: str | None = None,
    ) -> tuple[str, str | None]:
        """Attach a Windows container; returns its address and its namespace GUID, if the daemon made one.

        `ip_override` asks for an address. `dns_server` (an address) and `dns_domain` replace the cached ones. With
        `autoclean` the namespace is in `hcn_attachments()` until it is detached, if the daemon answered with a GUID;
        another handle is logged and not kept. Raises OverlaydError; a daemon on Linux always refuses.
        """
        cached_server, domain = self._state.settings.dns(dns_domain)
        request = wire.AttachContainer(
            wire.WindowsContainer(container_id, ip_override),
            service_name,
            join_global=False,
            isolation_network=isolation_network,
            dns_server=cached_server if dns_server is None else dns_server,
            dns_domain=domain,
        )
        reply = self._channel.ask(request, wire.Attached)
        if autoclean and reply.namespace_guid is not None:
            self._hcn.add(reply.namespace_guid, service_name, reply.ip)
        return reply.ip, reply.namespace_guid

    def hcn_attachments(self) -> dict[str, tuple[str, str]]:
        """A copy of the list of `autoclean` attachments: namespace GUID, in lower case, to (service, address)."""
        return self._hcn.snapshot()

    def detach_container(self, pid: int) -> None:
        """Undo an attach by PID; an unknown one is fine. Raises OverlaydError."""
        self._channel.call(wire.DetachContainer(wire.LinuxPid(pid)))

    def detach_container_guest(self, id: str) -> None:
        """Undo an attach of a guest; an unknown one is fine. Raises OverlaydError, Unexpected for any answer but ok."""
        self._channel.ask(wire.DetachContainer(wire.GuestManaged(id)), wire.Ok)

    def detach_container_host_shared(self, container_id: str) -> None:
        """Undo an attach of a host process; an unknown one is fine. Raises as `detach_container_guest` does."""
        self._channel.ask(wire.DetachContainer(wire.HostShared(container_id)), wire.Ok)

    def detach_container_hcn(self, namespace_guid: str) -> None:
        """Undo an attach of a Windows container, by its namespace GUID. Raises OverlaydError.

        Its entry in `hcn_attachments()` is dropped before the daemon is asked, so that a failure leaves none behind.
        """
        self._hcn.remove(namespace_guid)
        self._channel.call(wire.DetachContainer(wire.WindowsContainer(namespace_guid)))
