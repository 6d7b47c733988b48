"""Services: set up, torn down, pruned (contract 6.5, 6.6, 6.13)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import cast

from cni import naming
from cni.daemon.books.records import Service
from cni.daemon.mesh import peer_book
from cni.daemon.operations.desk import Desk
from cni.overlay import wire

log = logging.getLogger(__name__)


def setup_service_overlay(ask: wire.SetupServiceOverlay, desk: Desk) -> wire.ServiceOverlay:
    """The service has a bridge; it keeps it until torn down or pruned. Repeating mends what is missing.

    An isolated service is answered as `auto`, as ZLayer's daemon does: only an attach says which network is joined. A
    dedicated one has its key and port from now on; `name` is the bridge's, every time. `auto` for a dedicated one
    changes nothing of it: its key must last, for other nodes know it. Raises CniError.
    """
    rename(ask.service, ask.mode, desk)
    before = desk.state.services.get(ask.service)
    known = desk.service.services.ensure(ask.service, ask.mode, keep=True)
    if ask.mode == "dedicated":
        own = desk.identity.dedicated(ask.service)
        desk.refresh()
        subnet = known.networks(4) + known.networks(6)
        return wire.ServiceOverlay(
            known.bridge, ask.mode, own.public_key, own.port, str(subnet[0].network_address + 1), str(subnet[0])
        )
    if before is not None and before.mode == "dedicated" and known.mode != "dedicated":
        desk.identity.forget(ask.service)
        desk.refresh()
    mode = "shared" if ask.mode == "shared" else "auto"
    return wire.ServiceOverlay(known.bridge, cast(wire.Mode, mode))


def rename(service: str, mode: str, desk: Desk) -> None:
    """A service that nobody uses takes the name that today's deployment gives its bridge; one in use keeps its own."""
    known, node = desk.state.services.get(service), desk.state.node
    if mode == "shared" or known is None or known.mode == "shared" or desk.state.in_use(service):
        return
    with desk.service.services.holding(service, mode):
        by_rule = naming.service_bridge(node.deployment, node.instance_id, service)
        if known.bridge != by_rule and not desk.state.in_use(service):
            desk.service.services.teardown(service)


def teardown_service_overlay(ask: wire.TeardownServiceOverlay, desk: Desk) -> wire.Ok:
    """No bridge, subnet, fence or record of the service; its containers are cut off first. Idempotent.

    The shared bridge stays, and so do the containers on it.
    """
    _teardown(ask.service, desk)
    return wire.Ok()


def _teardown(service: str, desk: Desk) -> None:
    if service == naming.SHARED_BRIDGE_KEY:
        return
    known = desk.state.services.get(service)
    if known is not None and known.mode != "shared":
        for attachment in desk.state.members(known.bridge):
            desk.service.attacher.detach(attachment.key)
    desk.service.services.teardown(service)
    desk.identity.forget(service)
    gone = {key: None for key, peer in desk.registry.peers.all().items() if peer.service == service}
    if gone:
        desk.registry.peers.apply(gone)
    desk.refresh()


def teardown_idle(desk: Desk) -> None:
    """Every service that nobody uses goes, the shared bridge too if nobody is on it."""
    for service in _own(desk):
        if not desk.state.in_use(service.name):
            _teardown(service.name, desk)
    if not desk.state.in_use(naming.SHARED_BRIDGE_KEY):
        for service in list(desk.state.services.values()):
            if service.mode == "shared" and service.name != naming.SHARED_BRIDGE_KEY:
                desk.service.services.teardown(service.name)
        desk.service.services.teardown_shared()


def prune_orphan_bridges(ask: wire.PruneOrphanBridges, desk: Desk) -> wire.PrunedBridges:
    """Remove our bridges that nobody uses and the list does not name; answers their names.

    Ours are those of our records: unlike ZLayer's daemon it takes no other daemon's, nor counts users by /sys (contract
    5.3/28, 6.13). Bridges of ours that no record knows are removed when the daemon starts.
    """
    live = set(ask.live_bridge_names)
    return wire.PrunedBridges(
        tuple(service.bridge for service in _own(desk) if service.bridge not in live and _prune(service, desk))
    )


def _prune(service: Service, desk: Desk) -> bool:
    with desk.service.services.holding(service.name, service.mode):
        if desk.state.in_use(service.name) or desk.state.services.get(service.name) != service:
            return False
        log.info("pruning the idle bridge %s of service %s", service.bridge, service.name)
        # Key, port and peers of a dedicated service are its device's, and no bridge: a later setup finds them again.
        desk.service.services.teardown(service.name)
        return True


def _own(desk: Desk) -> list[Service]:
    """The services with a bridge of their own."""
    return [
        service
        for service in list(desk.state.services.values())
        if service.mode != "shared" and service.name != naming.SHARED_BRIDGE_KEY
    ]


def count(desk: Desk) -> int:
    """How many services are set up, each of those on the shared bridge counted."""
    return len(set(desk.state.services) - {naming.SHARED_BRIDGE_KEY})


def dedicated(desk: Desk) -> Iterator[wire.Dedicated]:
    """The services with a WireGuard device of their own, as `status` lists them."""
    node = desk.state.node
    for service in _own(desk):
        subnets = service.networks(4) + service.networks(6)
        if service.mode == "dedicated" and subnets:
            own = desk.identity.dedicated(service.name)
            yield wire.Dedicated(
                service=service.name,
                interface=naming.dedicated_device(node.deployment, node.instance_id, service.name),
                public_key=own.public_key,
                listen_port=own.port,
                overlay_ip=str(subnets[0].network_address + 1),
                subnet=str(subnets[0]),
                peer_count=_peer_count(service.name, desk),
            )


def _peer_count(service: str, desk: Desk) -> int:
    if desk.mesh is not None:
        return len(desk.mesh.targets(service))
    return len(peer_book.of_device(desk.registry.peers.all(), service))
