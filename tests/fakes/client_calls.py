"""One call for each public name of ZLayer's client, with what it must give: for the stateful fake and a real daemon.

A call is made in front of a daemon of ours (real, or the fake that says it is one) whose manager has set up the global
overlay and the services `web` (auto) and `db` (dedicated). `prepare` and `undo` are calls of other names; the requests
between them are those of `call` alone.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cni.overlay import manager as module
from cni.overlay import wire
from cni.overlay.manager import NatSettings, OverlayManager, PeerInfo, Refused, Unexpected

KEY = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
SLICE, CLUSTER, PORT = "10.200.0.16/28", "10.200.0.0/16", 51420
PEER = PeerInfo(KEY, "203.0.113.7:51420", "10.201.0.0/26")
CANDIDATE = wire.Candidate("host", "192.168.1.5:51420", 100)
NODE_IP = "10.200.0.17"


@dataclass
class Stage:
    """Where a call is made."""

    manager: OverlayManager
    pid: Callable[[], int]  # a new process in a network namespace of its own
    directory: Path  # empty
    service_bridge: str  # of `web`


@dataclass(frozen=True)
class Call:
    """One use of one name. `refusal` is a pattern of the daemon's message, where it must refuse."""

    call: Callable[[Stage], Any]
    check: Callable[[Stage, Any], bool] = lambda _, given: given is None
    prepare: Callable[[Stage], Any] = lambda _: None
    undo: Callable[[Stage], Any] = lambda _: None
    refusal: str = ""

    def run(self, stage: Stage) -> None:
        """Make the call and judge what it gives."""
        if self.refusal:
            with pytest.raises((Refused, Unexpected), match=self.refusal):
                self.call(stage)
            return
        given = self.call(stage)
        assert self.check(stage, given), given


def gives(value: Any) -> Callable[[Stage, Any], bool]:
    """The call gives this value."""
    return lambda _, given: bool(given == value)


def inside(network: str) -> Callable[[Stage, Any], bool]:
    """The call gives an address of this network."""
    return lambda _, given: ipaddress.ip_address(given) in ipaddress.ip_network(network)


def chained(seen: Callable[[OverlayManager], Any] = lambda _: None) -> Callable[[Stage, Any], bool]:
    """The call gives the manager itself, and what is `seen` of that is true, or None where nothing can be seen."""
    return lambda stage, given: given is stage.manager and seen(stage.manager) in (True, None)


def setter(call: Callable[[OverlayManager], Any], undo: Callable[[OverlayManager], Any], seen: Any = None) -> Call:
    """A call of a `with_*` setter."""
    return Call(
        lambda stage: call(stage.manager),
        chained(seen or (lambda _: None)),
        undo=lambda stage: undo(stage.manager),
    )


def reads(name: str, value: Any) -> Call:
    """A call without arguments that gives this value."""
    return Call(lambda stage: getattr(stage.manager, name)(), gives(value))


def set_up(manager: OverlayManager) -> None:
    """The overlay and services that every call finds."""
    manager.setup_global_overlay()
    manager.setup_service_overlay("web")
    manager.setup_service_overlay("db", "dedicated")


def _built(make: Callable[[], OverlayManager], slice_cidr: str | None) -> Call:
    expected = (CLUSTER, slice_cidr, PORT, "prod", None, None, False)
    return Call(
        lambda _: make(),
        lambda _, m: (
            m.cluster_cidr(), m.slice_cidr(), m.overlay_port(), m.deployment(), m.node_ip(), m.global_interface(),
            m.has_global_transport(),
        ) == expected,
    )  # fmt: skip


CALLS: dict[str, Call] = {
    "make_interface_name": Call(
        lambda _: (module.make_interface_name(["app"], "g"), module.make_interface_name(["a" * 40], "")),
        lambda _, given: given[0] == "zl-app-g" and len(given[1]) == 15,
    ),
    "resolve_isolation_network": Call(
        lambda _: [
            module.resolve_isolation_network(mode, "web", named)
            for mode, named in (
                ("isolated", None),
                ("auto", None),
                ("dedicated", None),
                ("auto", ""),
                ("isolated", "n"),
            )
        ],
        gives(["web", None, None, "", "n"]),
    ),
    "new": _built(lambda: OverlayManager.new("prod", "42"), None),
    "with_slice": _built(lambda: OverlayManager.with_slice("prod", CLUSTER, SLICE, PORT, "42"), SLICE),
    "with_overlay_port": setter(
        lambda m: m.with_overlay_port(51500), lambda m: m.with_overlay_port(PORT), lambda m: m.overlay_port() == 51500
    ),
    "with_nat_config": setter(
        lambda m: m.with_nat_config(NatSettings(enabled=False)),
        lambda m: m.with_nat_config(None),
        lambda m: not m.nat_enabled(),
    ),
    "with_relay_credential": setter(lambda m: m.with_relay_credential("s"), lambda m: m.with_relay_credential(" ")),
    "with_uapi_sock_dir": setter(lambda m: m.with_uapi_sock_dir(Path("/run/x")), lambda _: None),
    "with_data_dir": Call(
        lambda stage: OverlayManager.new("p", "i").with_data_dir(stage.directory),
        lambda stage, m: m._state.settings.socket == f"{stage.directory}/run/zlayer-overlayd.sock",
    ),
    "with_local_node_id": setter(lambda m: m.with_local_node_id(3), lambda m: m.with_local_node_id(0)),
    "with_host_adapter_mandatory": setter(
        lambda m: m.with_host_adapter_mandatory(True), lambda m: m.with_host_adapter_mandatory(False)
    ),
    "set_local_node_id": Call(
        lambda stage: stage.manager.set_local_node_id(3), undo=lambda stage: stage.manager.set_local_node_id(0)
    ),
    "set_local_wg_pubkey": Call(lambda stage: stage.manager.set_local_wg_pubkey(KEY)),
    "service_count": reads("service_count", 2),
    "nat_enabled": reads("nat_enabled", True),
    "nat_config": Call(
        lambda stage: stage.manager.nat_config(),
        gives(NatSettings(max_candidate_pairs=3)),
        prepare=lambda stage: stage.manager.with_nat_config(NatSettings(max_candidate_pairs=3)),
        undo=lambda stage: stage.manager.with_nat_config(None),
    ),
    "start_nat_traversal": reads("start_nat_traversal", True),
    "nat_maintenance_tick": reads("nat_maintenance_tick", None),
    "nat_status_snapshot": Call(
        lambda stage: stage.manager.nat_status_snapshot(), lambda _, given: isinstance(given, module.NatSnapshot)
    ),
    "set_dns_config": Call(
        lambda stage: stage.manager.set_dns_config("10.200.0.17:53", "prod.local local"),
        lambda stage, _: stage.manager.dns_server_addr() == "10.200.0.17:53",
        undo=lambda stage: stage.manager.set_dns_config(None, None),
    ),
    "with_dns_config": setter(
        lambda m: m.with_dns_config("10.200.0.17:53", "local"),
        lambda m: m.with_dns_config(None, None),
        lambda m: (m.dns_server_addr(), m.dns_domain()) == ("10.200.0.17:53", "local"),
    ),
    "dns_server_addr": reads("dns_server_addr", None),
    "dns_domain": reads("dns_domain", None),
    "setup_global_overlay": Call(
        lambda stage: stage.manager.setup_global_overlay(),
        lambda stage, _: (stage.manager.global_interface(), stage.manager.node_ip()) == ("zl-prod-42-g", NODE_IP),
        prepare=lambda stage: stage.manager.with_local_wg_pubkey(KEY),
    ),
    "setup_service_overlay": Call(
        lambda stage: stage.manager.setup_service_overlay("web", "auto"),
        lambda stage, given: (given.name, given.mode) == (stage.service_bridge, "auto"),
    ),
    "attach_container": Call(
        lambda stage: stage.manager.attach_container(stage.pid(), "web", False, False, "net", "local"), inside(CLUSTER)
    ),
    "attach_container_guest": Call(
        lambda stage: stage.manager.attach_container_guest("vm-1", "web", False, "net", "local"),
        lambda _, given: given.dns_domain == "local" and inside(CLUSTER)(_, given.overlay_ip),
        undo=lambda stage: stage.manager.detach_container_guest("vm-1"),
    ),
    "detach_container_guest": Call(
        lambda stage: stage.manager.detach_container_guest("vm-1"),
        prepare=lambda stage: stage.manager.attach_container_guest("vm-1", "web"),
    ),
    "write_scoped_resolver": Call(
        lambda stage: stage.manager.write_scoped_resolver("overlay.local", NODE_IP, 15353), refusal="macOS"
    ),
    "remove_scoped_resolver": Call(
        lambda stage: stage.manager.remove_scoped_resolver("overlay.local"), refusal="macOS"
    ),
    "attach_container_host_shared": Call(
        lambda stage: stage.manager.attach_container_host_shared("job-1", "web", False, None, None),
        inside(CLUSTER),
        undo=lambda stage: stage.manager.detach_container_host_shared("job-1"),
    ),
    "detach_container_host_shared": Call(
        lambda stage: stage.manager.detach_container_host_shared("job-1"),
        prepare=lambda stage: stage.manager.attach_container_host_shared("job-1", "web"),
    ),
    "attach_container_hcn": Call(
        lambda stage: stage.manager.attach_container_hcn("ctr", "web", None, True, None, None, None), refusal="Windows"
    ),
    "detach_container_hcn": Call(
        lambda stage: stage.manager.detach_container_hcn("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"),
        lambda stage, given: given is None and stage.manager.hcn_attachments() == {},
    ),
    "detach_container": Call(lambda stage: stage.manager.detach_container(4194300)),
    "prune_orphan_bridges": Call(
        lambda stage: stage.manager.prune_orphan_bridges(
            [stage.service_bridge, stage.manager.service_bridge_name("db")]
        ),
        lambda stage, given: given == [stage.manager.service_bridge_name("idle")],
        prepare=lambda stage: stage.manager.setup_service_overlay("idle"),
    ),
    "service_bridge_name": Call(
        lambda stage: stage.manager.service_bridge_name("web"), lambda stage, given: given == stage.service_bridge
    ),
    "teardown_service_overlay": Call(
        lambda stage: stage.manager.teardown_service_overlay("short"),
        lambda stage, given: given is None and stage.manager.service_count() == 2,
        prepare=lambda stage: stage.manager.setup_service_overlay("short"),
    ),
    "cleanup": Call(
        lambda stage: stage.manager.cleanup(),
        lambda stage, given: (
            (given, stage.manager.has_global_transport(), stage.manager.node_ip()) == (None, False, NODE_IP)
        ),
        undo=lambda stage: set_up(stage.manager),
    ),
    "node_ip": reads("node_ip", NODE_IP),
    "deployment": reads("deployment", "prod"),
    "global_interface": reads("global_interface", "zl-prod-42-g"),
    "overlay_port": reads("overlay_port", PORT),
    "has_global_transport": reads("has_global_transport", True),
    "service_bridge_count": reads("service_bridge_count", 2),
    "add_global_peer": Call(
        lambda stage: stage.manager.add_global_peer(PEER),
        prepare=lambda stage: stage.manager.remove_global_peer(KEY),
        undo=lambda stage: stage.manager.remove_global_peer(KEY),
    ),
    "add_global_peer_with_candidates": Call(
        lambda stage: stage.manager.add_global_peer_with_candidates(PEER, [CANDIDATE]),
        undo=lambda stage: stage.manager.remove_global_peer(KEY),
    ),
    "add_service_peer": Call(
        lambda stage: stage.manager.add_service_peer("db", PEER, "10.201.0.64/26"),
        undo=lambda stage: stage.manager.remove_service_peer("db", KEY),
    ),
    "remove_service_peer": Call(
        lambda stage: stage.manager.remove_service_peer("db", KEY),
        prepare=lambda stage: stage.manager.add_service_peer("db", PEER, "10.201.0.64/26"),
    ),
    "overlay_cidr": reads("overlay_cidr", CLUSTER),
    "slice_cidr": reads("slice_cidr", SLICE),
    "cluster_cidr": reads("cluster_cidr", CLUSTER),
    "persist_ipam_state": Call(
        lambda stage: stage.manager.persist_ipam_state(stage.directory / "ipam"),
        lambda stage, given: given is None and not list(stage.directory.iterdir()),
    ),
    "restore_ipam_state": Call(lambda stage: stage.manager.restore_ipam_state(stage.directory / "ipam")),
    "ip_alloc_stats": reads("ip_alloc_stats", (0, "10.200.0.0")),
}
