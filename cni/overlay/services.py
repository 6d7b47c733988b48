"""`OverlayManager`'s methods for services, their bridges and their bare leases (contract 3.4)."""

from collections.abc import Iterable

from cni import naming
from cni.overlay import wire
from cni.overlay.channel import Channel, expect, log
from cni.overlay.errors import OverlaydError
from cni.overlay.state import NodeState


class Services:
    """Services of one daemon."""

    def __init__(self, channel: Channel, state: NodeState) -> None:
        self._channel = channel
        self._state = state

    def setup_service_overlay(self, service_name: str, mode: wire.Mode = "auto") -> wire.ServiceOverlay:
        """Bring up the bridge that the service's containers attach to; repeating it is harmless.

        `mode`: `auto`, a bridge of the service's own; `shared`, one bridge for all services of that mode;
        `dedicated`, with a WireGuard device, key and port of its own as well; `isolated`, as `auto`: the
        network that an attach names is what fences a container. The mode of the latest call counts (contract 6.5).

        The answer's `name` is the bridge, save that ZLayer's daemon names the device when a dedicated service
        is set up again; key, port and address are there in mode dedicated only. For a daemon that answers with a
        name alone, the answer has that name and the mode that was asked for. Raises OverlaydError.
        """
        request = wire.SetupServiceOverlay(service_name, mode)
        reply = self._channel.call(request)
        if isinstance(reply, wire.BridgeName):
            return wire.ServiceOverlay(reply.name, mode)
        return expect(request, reply, wire.ServiceOverlay)

    def teardown_service_overlay(self, service_name: str) -> None:
        """Take the service's bridge and device down; a service that is not there is fine. A failure is logged."""
        self._channel.attempt(wire.TeardownServiceOverlay(service_name))

    def prune_orphan_bridges(self, live_bridge_names: Iterable[str]) -> list[str]:
        """Remove idle bridges that are not in `live_bridge_names`; returns those removed, none if it fails (logged).

        ZLayer's daemon removes any idle `zl-*-b` or `zl-*-d` link of the host, those of another deployment included.
        """
        request = wire.PruneOrphanBridges(tuple(live_bridge_names))
        try:
            return list(self._channel.ask(request, wire.PrunedBridges).reclaimed)
        except OverlaydError as e:
            log.warning("prune_orphan_bridges: %s", e)
            return []

    def service_count(self) -> int:
        """How many services the daemon has; 0 if it cannot be asked."""
        try:
            return self._channel.ask(wire.StatusRequest(), wire.Status).service_count
        except OverlaydError:
            return 0

    def service_bridge_count(self) -> int:
        """The same number under its other name."""
        return self.service_count()

    def service_bridge_name(self, service: str) -> str:
        """The name of the service's bridge by the rule of contract 4. Nothing is asked."""
        settings = self._state.settings
        return naming.service_bridge(settings.deployment, settings.instance_id, service)

    def allocate_ip(self, service: str, join_global: bool = False) -> str:
        """Lease an address of the service, or of the node's slice if it is not set up here.

        Only `release_ip` gives it back. Both daemons ignore `join_global`. Raises OverlaydError.
        """
        return self._channel.ask(wire.AllocateIp(service, join_global), wire.IpReply).ip

    def release_ip(self, ip: str) -> None:
        """Give a leased address back; again is fine. Raises OverlaydError.

        ZLayer's daemon puts any address into its pool here, one it did not lease included.
        """
        self._channel.call(wire.ReleaseIp(ip))
