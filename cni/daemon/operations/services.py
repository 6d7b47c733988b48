"""Services: set up, torn down, pruned (contract 6.5, 6.6, 6.13)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import cast

from cni import naming
from cni.daemon.model.records import Service
from cni.daemon.operations.context import OperationContext
from cni.overlay import wire

log = logging.getLogger(__name__)


def setup_service_overlay(ask: wire.SetupServiceOverlay, context: OperationContext) -> wire.ServiceOverlay:
    """Set up the service's bridge, which stays until the service is torn down or pruned. Repeating the request repairs
    what is missing.

    An isolated service is answered as `auto`, as ZLayer's daemon does: only an attach says which network is joined. A
    dedicated service gets its key and port; `name` is always the bridge's. `auto` leaves a dedicated service
    unchanged: its key must last, because other nodes know it. Raises CniError.
    """
    rename(ask.service, ask.mode, context)
    before = context.state.service(ask.service)
    record = context.segments.ensure(ask.service, ask.mode, keep=True)
    if ask.mode == "dedicated":
        own = context.identity.dedicated(ask.service)
        context.refresh()
        subnet = record.networks(4) + record.networks(6)
        return wire.ServiceOverlay(
            record.bridge, ask.mode, own.public_key, own.port, str(subnet[0].network_address + 1), str(subnet[0])
        )
    if before is not None and before.mode == "dedicated" and record.mode != "dedicated":
        context.identity.forget(ask.service)
        context.refresh()
    mode = "shared" if ask.mode == "shared" else "auto"
    return wire.ServiceOverlay(record.bridge, cast(wire.Mode, mode))


def rename(service: str, mode: str, context: OperationContext) -> None:
    """Tear down an unused service whose bridge has a name of an earlier deployment, so that its next bridge has the
    current name; a service in use keeps its bridge."""
    record, node = context.state.service(service), context.state.node
    if mode == "shared" or record is None or record.mode == "shared" or context.state.in_use(service):
        return
    with context.segments.holding(service, mode):
        by_rule = naming.service_bridge(node.deployment, node.instance_id, service)
        if record.bridge != by_rule and not context.state.in_use(service):
            context.segments.teardown(service)


def teardown_service_overlay(ask: wire.TeardownServiceOverlay, context: OperationContext) -> wire.Ok:
    """Remove the service's bridge, subnet, fence and record; its containers are detached first. Idempotent.

    The shared bridge stays, and so do the containers on it.
    """
    _teardown(ask.service, context)
    return wire.Ok()


def _teardown(service: str, context: OperationContext) -> None:
    if service == naming.SHARED_BRIDGE_KEY:
        return
    record = context.state.service(service)
    if record is not None and record.mode != "shared":
        for attachment in context.state.members(record.bridge):
            context.attacher.detach(attachment.key)
    context.segments.teardown(service)
    context.identity.forget(service)
    gone = {key: None for key, peer in context.registry.peers.all().items() if peer.service == service}
    if gone:
        context.registry.peers.apply(gone)
    context.refresh()


def teardown_idle(context: OperationContext) -> None:
    """Tear down every unused service, and the shared bridge if it has no attachment."""
    for service in _own(context):
        if not context.state.in_use(service.name):
            _teardown(service.name, context)
    if not context.state.in_use(naming.SHARED_BRIDGE_KEY):
        for service in context.state.services.values():
            if service.mode == "shared" and service.name != naming.SHARED_BRIDGE_KEY:
                context.segments.teardown(service.name)
        context.segments.teardown_shared()


def prune_orphan_bridges(ask: wire.PruneOrphanBridges, context: OperationContext) -> wire.PrunedBridges:
    """Remove the daemon's unused bridges that the list does not name; the reply has their names.

    The daemon's bridges are those of its records: unlike ZLayer's daemon it removes no other daemon's bridges, and does
    not count users by /sys (contract 5.3/28, 6.13). Its bridges without a record are removed when the daemon starts.
    """
    live = set(ask.live_bridge_names)
    return wire.PrunedBridges(
        tuple(service.bridge for service in _own(context) if service.bridge not in live and _prune(service, context))
    )


def _prune(service: Service, context: OperationContext) -> bool:
    with context.segments.holding(service.name, service.mode):
        if context.state.in_use(service.name) or context.state.service(service.name) != service:
            return False
        log.info("pruning the idle bridge %s of service %s", service.bridge, service.name)
        # Key, port and peers of a dedicated service belong to its device, not to the bridge: a later setup uses them.
        context.segments.teardown(service.name)
        return True


def _own(context: OperationContext) -> list[Service]:
    """The services that have a bridge of their own."""
    return [
        service
        for service in context.state.services.values()
        if service.mode != "shared" and service.name != naming.SHARED_BRIDGE_KEY
    ]


def count(context: OperationContext) -> int:
    """How many services are set up, those on the shared bridge included."""
    return len(set(context.state.services) - {naming.SHARED_BRIDGE_KEY})


def dedicated(context: OperationContext) -> Iterator[wire.Dedicated]:
    """The services with a WireGuard device of their own, as `status` lists them."""
    node = context.state.node
    for service in _own(context):
        subnets = service.networks(4) + service.networks(6)
        if service.mode == "dedicated" and subnets:
            own = context.identity.dedicated(service.name)
            yield wire.Dedicated(
                service=service.name,
                interface=naming.dedicated_device(node.deployment, node.instance_id, service.name),
                public_key=own.public_key,
                listen_port=own.port,
                overlay_ip=str(subnets[0].network_address + 1),
                subnet=str(subnets[0]),
                peer_count=len(context.mesh.targets(service.name)),
            )
