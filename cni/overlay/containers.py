"""`OverlayManager`'s methods for services, and for what attaches to them (contract 3.4)."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from cni import naming
from cni.overlay import wire
from cni.overlay.address import network
from cni.overlay.calls import Calls, expect, log
from cni.overlay.errors import OverlaydError


class ServiceCalls(Calls):
    """Services and their bridges."""

    def setup_service_overlay(self, service: str, mode: wire.Mode = "auto") -> wire.ServiceOverlay:
        """Bring up what the service's containers attach to; doing it again is harmless.

        `mode`: `auto`, a bridge of the service's own; `shared`, one bridge for all services of that mode;
        `dedicated`, with a WireGuard device, key and port of its own as well; `isolated`, as `auto`: what fences
        a container is the network its attach names. The last mode said counts (contract 6.5).

        The answer's `name` is the bridge, save that ZLayer's daemon names the device when a dedicated service
        is set up again; key, port and address are there in mode dedicated only. A daemon that answers with a
        name alone is taken at its word, with the mode that was asked for. Raises OverlaydError.
        """
        request = wire.SetupServiceOverlay(service, mode)
        reply = self._call(request)
        if isinstance(reply, wire.BridgeName):
            return wire.ServiceOverlay(reply.name, mode)
        return expect(request, reply, wire.ServiceOverlay)

    def teardown_service_overlay(self, service: str) -> None:
        """Take the service's bridge and device down; a service that is not there is fine. A failure is logged."""
        self._try(wire.TeardownServiceOverlay(service))

    def prune_orphan_bridges(self, live: Iterable[str]) -> list[str]:
        """Remove idle bridges not named in `live`; returns those removed, none if the daemon fails (logged).

        Beware with ZLayer's daemon: it takes any idle `zl-*-b` or `zl-*-d` link of the host, another
        deployment's included.
        """
        request = wire.PruneOrphanBridges(tuple(live))
        try:
            return list(self._ask(request, wire.PrunedBridges).reclaimed)
        except OverlaydError as e:
            log.warning("prune_orphan_bridges: %s", e)
            return []

    def service_count(self) -> int:
        """How many services the daemon has; 0 if it cannot say."""
        try:
            return self._ask(wire.StatusRequest(), wire.Status).service_count
        except OverlaydError:
            return 0

    def service_bridge_count(self) -> int:
        """The same number under its other name."""
        return self.service_count()

    def service_bridge_name(self, service: str) -> str:
        """The bridge's name as rule 4 of the contract makes it. Nothing is asked."""
        return naming.service_bridge(self._settings.deployment, self._settings.instance_id, service)

    def allocate_ip(self, service: str, join_global: bool = False) -> str:
        """Lease an address of the service, or of the node's slice if it is not set up here.

        Only `release_ip` gives it back. Both daemons ignore `join_global`. Raises OverlaydError.
        """
        return self._ask(wire.AllocateIp(service, join_global), wire.IpReply).ip

    def release_ip(self, ip: str) -> None:
        """Give a leased address back; again is fine. Raises OverlaydError.

        ZLayer's daemon takes any address here and may give it out, so give it none that it did not lease.
        """
        self._call(wire.ReleaseIp(ip))

    def ip_alloc_stats(self) -> tuple[int, str]:
        """(0, the cluster's network address): the client keeps no leases, and says so as ZLayer's does."""
        try:
            return 0, str(network(self._remembered.cluster_cidr).network_address)
        except ValueError:
            return 0, "0.0.0.0"

    def persist_ipam_state(self) -> None:
        """Nothing: the daemon keeps the leases."""

    def restore_ipam_state(self) -> None:
        """Nothing: the daemon keeps the leases."""


class ContainerCalls(Calls):
    """Attach and detach, for each kind of handle.

    Where no `dns_*` is given an attach names the cached resolver and search domains (`with_dns_config`); domains
    may be several, separated by spaces.
    """

    def attach_container(  # noqa: PLR0917  (the order of ZLayer's own client, contract 3.4)
        self,
        pid: int,
        service: str,
        join_global: bool = False,
        ephemeral: bool = False,
        isolation_network: str | None = None,
        dns_domain: str | None = None,
    ) -> str:
        """Attach the network namespace of a living process; returns the address of its eth0.

        The process must live as long as the attachment, and one process is one attachment (contract 7.2); `pid`
        is as the daemon counts. The service has been set up before. `isolation_network` fences the container in
        with the members of that network, and "" is a name like any other; None does not fence it. `ephemeral`:
        the service goes when this one leaves as its last. `join_global`: a second leg, with ZLayer's daemon.

        Raises OverlaydError; after a DeadlinePassed the daemon may have attached it all the same, so detach.
        """
        request = self._attach(
            wire.LinuxPid(pid),
            service,
            join_global=join_global,
            ephemeral=ephemeral,
            isolation_network=isolation_network,
            dns_domain=dns_domain,
        )
        return self._ask(request, wire.Attached).ip

    def attach_container_guest(
        self,
        guest_id: str,
        service: str,
        join_global: bool = False,
        isolation_network: str | None = None,
        dns_domain: str | None = None,
    ) -> wire.GuestConfig:
        """Make a guest a peer of this node; returns what it needs to bring WireGuard up itself.

        `guest_id` is the caller's name for it. The global overlay has been set up before. Raises OverlaydError.
        """
        request = self._attach(
            wire.GuestManaged(guest_id),
            service,
            join_global=join_global,
            ephemeral=False,
            isolation_network=isolation_network,
            dns_domain=dns_domain,
        )
        return self._ask(request, wire.GuestConfig)

    def attach_container_host_shared(
        self,
        process_id: str,
        service: str,
        ephemeral: bool = False,
        isolation_network: str | None = None,
        dns_domain: str | None = None,
    ) -> str:
        """Give a process in the host's namespace an address of the node's slice; returns it.

        `process_id` is the caller's name for it, no PID. The global overlay has been set up before. Raises
        OverlaydError.
        """
        request = self._attach(
            wire.HostShared(process_id),
            service,
            join_global=True,
            ephemeral=ephemeral,
            isolation_network=isolation_network,
            dns_domain=dns_domain,
        )
        return self._ask(request, wire.Attached).ip

    def attach_container_hcn(
        self,
        container_id: str,
        service: str,
        ip: str | None = None,
        isolation_network: str | None = None,
        *,
        dns_server: str | None = None,
        dns_domain: str | None = None,
    ) -> tuple[str, str | None]:
        """Attach a Windows container; returns its address and its namespace GUID, if it was given one.

        `ip` asks for an address. A `dns_server` given here (an address) goes before the cached one. What has a
        GUID is kept in `hcn_attachments` until it is detached. Raises OverlaydError.
        """
        cached_server, domain = self._dns(dns_domain)
        request = wire.AttachContainer(
            wire.WindowsContainer(container_id, ip),
            service,
            join_global=False,
            isolation_network=isolation_network,
            dns_server=cached_server if dns_server is None else dns_server,
            dns_domain=domain,
        )
        reply = self._ask(request, wire.Attached)
        if reply.namespace_guid is not None:
            self._hcn[reply.namespace_guid] = (service, reply.ip)
        return reply.ip, reply.namespace_guid

    @property
    def hcn_attachments(self) -> Mapping[str, tuple[str, str]]:
        """Namespace GUID to (service, address) of the Windows containers not yet detached."""
        return MappingProxyType(self._hcn)

    def detach_container(self, pid: int) -> None:
        """Undo an attach by PID; an unknown one is fine. Raises OverlaydError."""
        self._call(wire.DetachContainer(wire.LinuxPid(pid)))

    def detach_container_guest(self, guest_id: str) -> None:
        """Undo an attach of a guest; an unknown one is fine. Raises OverlaydError."""
        self._ask(wire.DetachContainer(wire.GuestManaged(guest_id)), wire.Ok)

    def detach_container_host_shared(self, process_id: str) -> None:
        """Undo an attach of a host process; an unknown one is fine. Raises OverlaydError."""
        self._ask(wire.DetachContainer(wire.HostShared(process_id)), wire.Ok)

    def detach_container_hcn(self, namespace_guid: str) -> None:
        """Undo an attach of a Windows container, by its namespace GUID. Raises OverlaydError."""
        self._call(wire.DetachContainer(wire.WindowsContainer(namespace_guid)))
        self._hcn.pop(namespace_guid, None)

    def _attach(
        self,
        handle: wire.AnyHandle,
        service: str,
        *,
        join_global: bool,
        ephemeral: bool,
        isolation_network: str | None,
        dns_domain: str | None,
    ) -> wire.AttachContainer:
        server, domain = self._dns(dns_domain)
        return wire.AttachContainer(handle, service, join_global, ephemeral, isolation_network, server, domain)
