"""`OverlayManager`: what each method sends, takes, gives, and does about a failure (contract 3.3 and 3.4)."""

import threading
import time
from typing import Any

import msgspec
import pytest

from cni.overlay import wire
from cni.overlay.client import Deadline, Dialing
from cni.overlay.errors import (
    CodecError,
    DeadlinePassed,
    OverlaydError,
    Refused,
    TransportError,
    Unexpected,
    UnsupportedPeerChange,
)
from cni.overlay.manager import OverlayManager
from cni.overlay.nat import NatSettings, NatSnapshot, RelayServer, StunServer, TurnServer
from cni.overlay.peering import PeerInfo, aggregate
from cni.overlay.state import Timeouts
from tests.unit.fake_overlayd import FakeOverlayd, before, hang_up, reply, silence

KEY = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
GUID = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
NO = wire.Err("no")
ODD = wire.PrunedBridges(())


@pytest.fixture(params=[None, "zlayer-cni/1.0"], ids=["in front of ZLayer's", "in front of ours"])
def daemon(request, tmp_path):
    fake = FakeOverlayd(tmp_path / "o.sock", request.param).start()
    yield fake
    fake.stop()


@pytest.fixture
def theirs(tmp_path):
    fake = FakeOverlayd(tmp_path / "o.sock").start()
    yield fake
    fake.stop()


def manager_of(fake):
    manager = OverlayManager("prod", "42", socket=fake.path, dialing=Dialing(pause=0.01, longest_pause=0.01))
    return manager.with_timeouts(Timeouts(5, 5))


@pytest.fixture
def manager(daemon):
    manager = manager_of(daemon)
    yield manager
    manager.close()


@pytest.fixture
def plain(theirs):
    manager = manager_of(theirs)
    yield manager
    manager.close()


def test_constructors_dial_nothing_and_default_as_zlayers_do(tmp_path, monkeypatch):
    monkeypatch.setenv("ZLAYER_DATA_DIR", str(tmp_path))
    manager = OverlayManager.new("prod", "42")
    assert (manager.cluster_cidr(), manager.slice_cidr(), manager.overlay_port()) == ("10.200.0.0/16", None, 51420)
    assert manager.overlay_cidr() == "10.200.0.0/16"
    assert manager._state.settings.socket == f"{tmp_path}/run/zlayer-overlayd.sock"
    sliced = OverlayManager.with_slice("prod", "10.7.0.0/16", "10.7.0.16/28", 1234, "42")
    assert (sliced.cluster_cidr(), sliced.slice_cidr(), sliced.overlay_port()) == ("10.7.0.0/16", "10.7.0.16/28", 1234)
    assert sliced.with_data_dir("/srv/z")._state.settings.socket == "/srv/z/run/zlayer-overlayd.sock"
    assert (sliced.deployment(), sliced.node_ip(), sliced.has_global_transport()) == ("prod", None, False)
    assert sliced.ip_alloc_stats() == (0, "10.7.0.0")
    assert OverlayManager("p", "i", "nonsense").ip_alloc_stats() == (0, "0.0.0.0")
    assert OverlayManager.new("prod", "0").service_bridge_name("web") == "zl-prod-0-web-b"
    assert sliced.persist_ipam_state(tmp_path / "x") is None
    assert sliced.restore_ipam_state(tmp_path / "x") is None
    assert not (tmp_path / "x").exists()


# setup


def test_the_client_can_be_had_from_the_package_itself():
    from cni import overlay

    assert overlay.OverlayManager is OverlayManager
    assert overlay.__all__ == ["OverlayManager"]
    with pytest.raises(AttributeError, match="no attribute 'Overlay'"):
        overlay.Overlay  # noqa: B018


def test_setup_tells_what_the_node_is_and_remembers_the_answer(daemon, manager):
    manager.set_local_node_id(3)
    assert daemon.ops() == []  # it only remembers
    manager.with_local_wg_pubkey(KEY).setup_global_overlay()
    node, key, setup, _ = daemon.asked
    assert daemon.ops() == ["set_local_node_id", "set_local_wg_pubkey", "setup_global_overlay", "status"]
    assert (node.node_id, key.pubkey) == (3, KEY)
    assert setup == wire.SetupGlobalOverlay(
        deployment="prod", instance_id="42", cluster_cidr="10.200.0.0/16", wg_port=51420
    )
    assert (manager.global_interface(), manager.node_ip()) == ("zl-prod-42-g", "10.200.0.17")
    assert (manager.slice_cidr(), manager.has_global_transport()) == ("10.200.0.16/28", True)


def test_setup_fails_fast_without_a_daemon(tmp_path):
    manager = OverlayManager("p", "i", socket=str(tmp_path / "none"), dialing=Dialing(attempts=2, pause=0.01))
    with pytest.raises(TransportError, match="io error"):
        manager.setup_global_overlay()


def test_what_setup_says_before_and_asks_after_may_fail(daemon, manager):
    for kind in (wire.SetLocalNodeId, wire.SetLocalWgPubkey, wire.StatusRequest):
        daemon.next(kind, reply(NO))
    manager.with_local_wg_pubkey(KEY).setup_global_overlay()
    assert (manager.global_interface(), manager.node_ip()) == ("zl-prod-42-g", None)


def test_a_refused_setup_is_raised(daemon, manager):
    daemon.next(wire.SetupGlobalOverlay, reply(NO))
    with pytest.raises(Refused):
        manager.setup_global_overlay()
    assert not manager.has_global_transport()


def test_a_setup_has_one_deadline_for_all_it_says(daemon, manager):
    manager.with_timeouts(Timeouts(call=0.3))
    daemon.next(wire.SetLocalNodeId, silence)
    began = time.monotonic()
    with pytest.raises(TransportError):
        manager.setup_global_overlay()
    assert time.monotonic() - began < 20


def test_another_answer_to_setup_is_silently_fine(daemon, manager):
    daemon.next(wire.SetupGlobalOverlay, reply(wire.Ok()))
    daemon.next(wire.StatusRequest, reply(wire.Status(peer_count=0, service_count=0)))
    manager.setup_global_overlay()
    assert manager.global_interface() is None


def test_a_status_replaces_only_with_what_it_has(daemon, manager):
    manager.setup_global_overlay()
    thin = wire.Status(overlay_cidr="10.9.0.0/16", slice_cidr="nonsense", peer_count=0, service_count=0)
    daemon.next(wire.StatusRequest, reply(thin))
    manager.setup_global_overlay()
    assert (manager.node_ip(), manager.cluster_cidr(), manager.slice_cidr()) == (
        "10.200.0.17", "10.9.0.0/16", "10.200.0.16/28",
    )  # fmt: skip


def test_cleanup_forgets_the_interface_alone(daemon, manager):
    manager.setup_global_overlay()
    daemon.next(wire.TeardownGlobalOverlay, reply(NO))
    with pytest.raises(Refused):
        manager.cleanup()
    assert manager.has_global_transport()
    manager.cleanup()
    assert (manager.global_interface(), manager.node_ip()) == (None, "10.200.0.17")


def test_the_public_key_is_told_as_well_as_it_goes(daemon, manager):
    daemon.next(wire.SetLocalWgPubkey, reply(NO))
    manager.set_local_wg_pubkey(KEY)
    manager.set_local_wg_pubkey(KEY)
    assert daemon.ops() == ["set_local_wg_pubkey"] * 2


# reconnecting


def test_a_restarted_daemon_is_told_again_and_asked_again(daemon, manager):
    manager.with_local_node_id(3).with_local_wg_pubkey(KEY).setup_global_overlay()
    first = daemon.asked[2]
    daemon.restart()
    daemon.ops()
    assert manager.setup_service_overlay("web").name == manager.service_bridge_name("web")
    assert daemon.asked[2] == msgspec.structs.replace(first, slice_cidr="10.200.0.16/28")
    assert daemon.ops() == [
        "set_local_node_id", "set_local_wg_pubkey", "setup_global_overlay", "setup_service_overlay",
    ]  # fmt: skip


def test_a_daemon_that_comes_back_later_is_told_again_too(daemon, manager):
    manager.setup_global_overlay()
    daemon.stop()
    for _ in range(2):
        with pytest.raises(TransportError):
            manager.status()
    daemon.forget()
    daemon.start()
    daemon.ops()
    manager.status()
    assert daemon.ops() == ["set_local_node_id", "setup_global_overlay", "status"]
    manager.close()
    manager.status()
    assert daemon.ops() == ["status"]


def test_the_setup_after_a_reconnect_is_built_from_the_current_settings(daemon, manager):
    manager.setup_global_overlay()
    assert daemon.asked[1].slice_cidr is None
    manager.with_overlay_port(51500).with_local_node_id(9).with_local_wg_pubkey(KEY).with_nat_config(NatSettings())
    manager.with_host_adapter_mandatory(True)
    daemon.ops()
    daemon.next(wire.StatusRequest, hang_up)
    manager.status()
    assert daemon.asked == [
        wire.StatusRequest(),
        wire.SetLocalNodeId(9),
        wire.SetLocalWgPubkey(KEY),
        wire.SetupGlobalOverlay(
            deployment="prod",
            instance_id="42",
            cluster_cidr="10.200.0.0/16",
            slice_cidr="10.200.0.16/28",  # as the status after the setup told it
            wg_port=51500,
            host_adapter_mandatory=True,
            nat=wire.NatConfig(enabled=True),
        ),
        wire.StatusRequest(),
    ]


@pytest.mark.parametrize("answer", [NO, wire.BridgeName("another")], ids=["refused", "renamed"])
def test_telling_again_goes_as_well_as_it_goes(daemon, manager, answer):
    """And nothing is learnt from it."""
    manager.setup_global_overlay()
    daemon.next(wire.NatTick, hang_up)
    for kind in (wire.SetLocalNodeId, wire.SetupGlobalOverlay):
        daemon.next(kind, reply(answer))
    manager.nat_maintenance_tick()
    assert daemon.ops()[-4:] == ["nat_tick", "set_local_node_id", "setup_global_overlay", "nat_tick"]
    assert manager.global_interface() == "zl-prod-42-g"


def test_a_connection_lost_while_telling_again_is_the_end_of_it(daemon, manager):
    """One replacement for one call; the next one tells all of it again."""
    manager.setup_global_overlay()
    daemon.ops()
    daemon.next(wire.NatTick, hang_up)
    daemon.next(wire.SetLocalNodeId, hang_up)
    with pytest.raises(TransportError):
        manager.nat_maintenance_tick()
    assert daemon.ops() == ["nat_tick", "set_local_node_id"]
    manager.nat_maintenance_tick()
    assert daemon.ops() == ["set_local_node_id", "setup_global_overlay", "nat_tick"]


def test_nothing_else_is_given_again(daemon, manager):
    """No services, attachments, peers, names or edge peers: contract 3.3."""
    manager.setup_global_overlay()
    manager.setup_service_overlay("web")
    manager.attach_container(7, "web")
    manager.add_global_peer(PeerInfo(KEY, "203.0.113.7:51420", "10.200.0.17/32"))
    manager.register_dns("web", "10.200.5.2")
    manager.mint_edge_peer("ci", 600, "edge.example.net:51420")
    daemon.restart()
    daemon.ops()
    manager.status()
    assert daemon.ops() == ["set_local_node_id", "setup_global_overlay", "status"]


def test_the_setters_say_what_is_sent_and_dial_nothing(daemon, manager):
    chained = (
        manager.with_local_node_id(9)
        .with_local_wg_pubkey(KEY)
        .with_host_adapter_mandatory(True)
        .with_nat_config(NatSettings(enabled=False))
        .with_dns_config("10.200.0.17", "local")
        .with_relay_credential(None)
        .with_timeouts(Timeouts(5, 5))
        .with_dialing(Dialing(attempts=1))
        .with_socket(daemon.path)
    )
    assert chained is manager
    assert daemon.accepted == 0
    manager.setup_global_overlay()
    assert daemon.asked[:3] == [
        wire.SetLocalNodeId(9),
        wire.SetLocalWgPubkey(KEY),
        wire.SetupGlobalOverlay(
            deployment="prod",
            instance_id="42",
            cluster_cidr="10.200.0.0/16",
            wg_port=51420,
            host_adapter_mandatory=True,
            nat=wire.NatConfig(enabled=False),
        ),
    ]


@pytest.mark.parametrize("how", ["never set up", "cleaned up"])
def test_nothing_is_told_again_where_no_interface_is_remembered(daemon, manager, how):
    if how == "cleaned up":
        manager.setup_global_overlay()
        manager.cleanup()
    daemon.ops()
    daemon.next(wire.NatTick, hang_up)
    manager.nat_maintenance_tick()
    assert daemon.ops() == ["nat_tick", "nat_tick"]


# services


@pytest.mark.parametrize("mode", ["auto", "shared", "dedicated", "isolated"])
def test_setting_up_a_service(daemon, manager, mode):
    info = manager.setup_service_overlay("web", mode)
    assert (info.name, info.mode) == ("zl---web-b", {"isolated": "auto"}.get(mode, mode))
    assert daemon.asked == [wire.SetupServiceOverlay("web", mode)]


def test_a_name_alone_is_taken_with_the_mode_asked_for(daemon, manager):
    daemon.next(wire.SetupServiceOverlay, reply(wire.BridgeName("br")))
    assert manager.setup_service_overlay("web", "isolated") == wire.ServiceOverlay("br", "isolated")


def test_tearing_a_service_down_never_raises(daemon, manager):
    daemon.next(wire.TeardownServiceOverlay, reply(NO))
    manager.teardown_service_overlay("web")
    manager.teardown_service_overlay("web")
    assert daemon.ops() == ["teardown_service_overlay"] * 2


def test_pruning(daemon, manager):
    manager.setup_service_overlay("a")
    manager.setup_service_overlay("b")
    assert manager.prune_orphan_bridges(["zl---a-b"]) == ["zl---b-b"]
    for answer in (NO, wire.Ok()):
        daemon.next(wire.PruneOrphanBridges, reply(answer))
        assert manager.prune_orphan_bridges([]) == []


def test_counting_services(daemon, manager):
    manager.setup_service_overlay("a")
    assert manager.service_count() == manager.service_bridge_count() == 1
    for answer in (NO, wire.Ok()):
        daemon.next(wire.StatusRequest, reply(answer))
        assert manager.service_count() == 0


def test_leases(daemon, manager):
    address = manager.allocate_ip("web", True)
    manager.release_ip(address)
    assert daemon.asked == [wire.AllocateIp("web", True), wire.ReleaseIp(address)]


# containers


def test_attaching_by_pid(daemon, manager):
    manager.setup_service_overlay("web")
    daemon.ops()
    assert manager.attach_container(4242, "web", True, True, "", "x") == "10.200.5.2"
    assert manager.attach_container(4243, "web") == "10.200.5.3"
    assert daemon.asked == [
        wire.AttachContainer(wire.LinuxPid(4242), "web", True, True, "", None, "x"),
        wire.AttachContainer(wire.LinuxPid(4243), "web", False, False),
    ]
    manager.detach_container(4242)
    manager.detach_container(4242)
    assert daemon.asked[2:] == [wire.DetachContainer(wire.LinuxPid(4242))] * 2


def test_an_attach_names_the_cached_resolver_without_its_port(daemon, manager):
    manager.setup_service_overlay("web")
    manager.with_dns_config("10.200.0.17:53", "prod.overlay.local overlay.local")
    assert (manager.dns_server_addr(), manager.dns_domain()) == ("10.200.0.17:53", "prod.overlay.local overlay.local")
    daemon.ops()
    manager.attach_container(1, "web")
    manager.attach_container(1, "web", dns_domain_override="mine")
    manager.attach_container_guest("vm-1", "web", True)
    manager.attach_container_host_shared("web-0", "web", True, "net")
    manager.attach_container_hcn("c", "web", "10.200.0.20", True, None, "10.0.0.1", "w")
    manager.attach_container_hcn("c", "web")
    dns = [(r.dns_server, r.dns_domain) for r in daemon.asked]
    cached = ("10.200.0.17", "prod.overlay.local overlay.local")
    assert dns == [cached, ("10.200.0.17", "mine"), cached, cached, ("10.0.0.1", "w"), cached]
    assert [r.join_global for r in daemon.asked] == [False, False, True, True, False, False]
    assert [r.ephemeral for r in daemon.asked] == [False, False, False, True, False, False]
    manager.set_dns_config("[fd00::1]:53", None)
    manager.attach_container(1, "web")
    assert (daemon.asked[-1].dns_server, daemon.asked[-1].dns_domain) == ("fd00::1", None)
    with pytest.raises(CodecError, match="DNS server"):
        manager.set_dns_config("resolver.local:53", None)


def test_a_guest_gets_its_configuration(daemon, manager):
    config = manager.attach_container_guest("vm-1", "web", isolation_network="n")
    assert (config.overlay_ip, config.prefix_len) == ("10.200.5.2", 26)
    assert daemon.asked == [wire.AttachContainer(wire.GuestManaged("vm-1"), "web", False, False, "n")]
    manager.detach_container_guest("vm-1")


@pytest.mark.parametrize("name", ["detach_container_guest", "detach_container_host_shared"])
def test_only_ok_ends_a_guest_or_host_process(daemon, manager, name):
    daemon.next(wire.DetachContainer, reply(ODD))
    with pytest.raises(Unexpected, match=r"^overlayd DetachContainer returned unexpected response: PrunedBridges"):
        getattr(manager, name)("x")
    daemon.next(wire.DetachContainer, reply(ODD))
    manager.detach_container(1)  # by PID any answer does


def test_windows_containers_with_autoclean_are_kept_until_detached(daemon, manager):
    manager.setup_service_overlay("web")
    daemon.ops()
    assert manager.attach_container_hcn("ctr", "web", "10.200.0.20", True) == ("10.200.5.2", GUID)
    assert daemon.asked[0].handle == wire.WindowsContainer("ctr", "10.200.0.20")
    assert manager.hcn_attachments() == {GUID: ("web", "10.200.5.2")}
    manager.detach_container_hcn(GUID.upper())
    assert manager.hcn_attachments() == {}
    assert daemon.asked[-1] == wire.DetachContainer(wire.WindowsContainer(GUID.upper()))
    manager.detach_container_hcn(GUID)  # an unknown one is fine


def test_an_entry_is_dropped_before_the_daemon_is_asked(daemon, manager):
    manager.setup_service_overlay("web")
    manager.attach_container_hcn("ctr", "web", None, True)
    daemon.next(wire.DetachContainer, reply(NO))
    with pytest.raises(Refused):
        manager.detach_container_hcn(GUID)
    assert manager.hcn_attachments() == {}


def test_windows_containers_without_autoclean_are_not_kept(daemon, manager):
    manager.setup_service_overlay("web")
    assert manager.attach_container_hcn("ctr", "web") == ("10.200.5.2", GUID)
    assert manager.hcn_attachments() == {}


@pytest.mark.parametrize(
    "handle", ["aabb-01", "", f"{{{GUID}}}", GUID[:-1], GUID + "0", GUID.replace("-", ""), "g" + GUID[1:]]
)
def test_a_handle_that_is_no_guid_is_not_kept_and_is_sent_all_the_same(daemon, manager, caplog, handle):
    daemon.next(wire.AttachContainer, reply(wire.Attached("10.200.5.2", handle)))
    assert manager.attach_container_hcn("ctr", "web", None, True) == ("10.200.5.2", handle)
    assert manager.hcn_attachments() == {}
    manager.detach_container_hcn(handle)
    assert daemon.asked[-1] == wire.DetachContainer(wire.WindowsContainer(handle))
    assert [r.message.partition(":")[0] for r in caplog.records] == ["attach_container_hcn", "detach_container_hcn"]


def test_cleanup_empties_the_list_of_windows_containers(daemon, manager):
    manager.setup_service_overlay("web")
    manager.attach_container_hcn("ctr", "web", None, True)
    daemon.next(wire.TeardownGlobalOverlay, reply(NO))
    with pytest.raises(Refused):
        manager.cleanup()
    assert manager.hcn_attachments() == {GUID: ("web", "10.200.5.2")}
    manager.cleanup()
    assert manager.hcn_attachments() == {}


def test_a_refused_attach_says_what_the_daemon_said(manager):
    with pytest.raises(Refused) as caught:
        manager.attach_container(7, "nosuch")
    assert caught.value.message == "no service bridge for service nosuch; call setup_service_overlay() first"
    assert caught.value.code == 100


@pytest.mark.parametrize(
    ("name", "args", "sent"),
    [
        ("teardown_service_overlay", ("web",), wire.TeardownServiceOverlay("web")),
        ("prune_orphan_bridges", (["a", "b"],), wire.PruneOrphanBridges(("a", "b"))),
        ("service_count", (), wire.StatusRequest()),
        ("release_ip", ("10.200.5.2",), wire.ReleaseIp("10.200.5.2")),
        ("detach_container_guest", ("vm-1",), wire.DetachContainer(wire.GuestManaged("vm-1"))),
        ("detach_container_host_shared", ("web-0",), wire.DetachContainer(wire.HostShared("web-0"))),
        (
            "mint_edge_peer",
            ("ci", 600, "edge.example.net:51420", ["web"]),
            wire.MintEdgePeer(name="ci", ttl_secs=600, allow=("web",), node_endpoint="edge.example.net:51420"),
        ),
        ("revoke_edge_peer", ("ci",), wire.RevokeEdgePeer("ci")),
        ("list_edge_peers", (), wire.ListEdgePeers()),
        ("register_dns", ("web", "10.200.5.2"), wire.RegisterDns("web", "10.200.5.2")),
        ("unregister_dns", ("web",), wire.UnregisterDns("web")),
        ("nat_maintenance_tick", (), wire.NatTick()),
        ("nat_status_snapshot", (), wire.NatStatusRequest()),
        ("cleanup", (), wire.TeardownGlobalOverlay()),
        ("set_local_wg_pubkey", (KEY,), wire.SetLocalWgPubkey(KEY)),
        ("status", (), wire.StatusRequest()),
        ("shutdown", (), wire.Shutdown()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_sent(daemon, manager, name, args, sent):
    getattr(manager, name)(*args)
    assert daemon.asked == [sent]


def test_what_scoped_resolvers_are_sent_as(daemon, manager):
    for method, args in (
        (manager.write_scoped_resolver, ("overlay.local", "10.200.0.17", 15353)),
        (manager.write_scoped_resolver, ("overlay.local", "10.200.0.17")),
        (manager.remove_scoped_resolver, ("overlay.local",)),
    ):
        with pytest.raises(Refused, match="macOS-only"):
            method(*args)
    assert daemon.asked == [
        wire.WriteScopedResolver("overlay.local", "10.200.0.17", 15353),
        wire.WriteScopedResolver("overlay.local", "10.200.0.17"),
        wire.RemoveScopedResolver("overlay.local"),
    ]


@pytest.mark.parametrize(
    "case",
    [
        (lambda m: m.set_local_wg_pubkey(KEY), wire.SetLocalWgPubkey, None),
        (lambda m: m.teardown_service_overlay("web"), wire.TeardownServiceOverlay, None),
        (lambda m: m.prune_orphan_bridges([]), wire.PruneOrphanBridges, []),
        (lambda m: m.nat_status_snapshot(), wire.NatStatusRequest, NatSnapshot()),
        (lambda m: m.service_count(), wire.StatusRequest, 0),
        (lambda m: m.service_bridge_count(), wire.StatusRequest, 0),
    ],
    ids=["public key", "teardown", "prune", "nat status", "services", "bridges"],
)
def test_calls_that_never_raise_log_and_give_nothing(daemon, manager, caplog, case):
    """Whatever the daemon does: refuses, breaks the connection twice, hangs, or is not there."""
    call, kind, gives = case
    manager.with_timeouts(Timeouts(call=0.5))
    for answers in ([reply(NO)], [hang_up, hang_up], [silence]):
        for answer in answers:
            daemon.next(kind, answer)
        assert call(manager) == gives
    daemon.stop()
    assert call(manager) == gives
    if gives != 0:
        assert len([r for r in caplog.records if r.name == "cni.overlay"]) == 4
    daemon.start()


SHAPED: list[Any] = [
    ("setup_service_overlay", ("web",), wire.SetupServiceOverlay),
    ("attach_container", (1, "web"), wire.AttachContainer),
    ("attach_container_guest", ("vm", "web"), wire.AttachContainer),
    ("attach_container_host_shared", ("p", "web"), wire.AttachContainer),
    ("attach_container_hcn", ("c", "web"), wire.AttachContainer),
    ("allocate_ip", ("web",), wire.AllocateIp),
    ("mint_edge_peer", ("e", 60, "1.2.3.4:51420"), wire.MintEdgePeer),
    ("revoke_edge_peer", ("e",), wire.RevokeEdgePeer),
    ("list_edge_peers", (), wire.ListEdgePeers),
    ("status", (), wire.StatusRequest),
]
ANY: list[Any] = [
    ("detach_container", (1,), wire.DetachContainer),
    ("detach_container_hcn", ("g",), wire.DetachContainer),
    ("release_ip", ("10.0.0.1",), wire.ReleaseIp),
    ("register_dns", ("web", "10.0.0.1"), wire.RegisterDns),
    ("unregister_dns", ("web",), wire.UnregisterDns),
    ("write_scoped_resolver", ("z", "10.0.0.1", 53), wire.WriteScopedResolver),
    ("remove_scoped_resolver", ("z",), wire.RemoveScopedResolver),
    ("nat_maintenance_tick", (), wire.NatTick),
    ("cleanup", (), wire.TeardownGlobalOverlay),
    ("remove_service_peer", ("web", KEY), wire.RemovePeer),
    ("remove_global_peer", (KEY,), wire.RemovePeer),
    ("shutdown", (), wire.Shutdown),
]


@pytest.mark.parametrize(("name", "args", "kind"), SHAPED + ANY, ids=lambda v: v if isinstance(v, str) else "")
def test_a_refusal_and_a_broken_daemon_are_raised(daemon, manager, name, args, kind):
    daemon.next(kind, reply(NO))
    with pytest.raises(Refused, match=r"^overlayd: overlay engine error: no$"):
        getattr(manager, name)(*args)
    for _ in range(2):
        daemon.next(kind, hang_up)
    with pytest.raises(TransportError):
        getattr(manager, name)(*args)
    assert len([r for r in daemon.asked if isinstance(r, kind)]) == 3


@pytest.mark.parametrize(("name", "args", "kind"), SHAPED, ids=lambda v: v if isinstance(v, str) else "")
def test_an_answer_of_the_wrong_shape_is_raised(daemon, manager, name, args, kind):
    daemon.next(kind, reply(ODD))
    op = kind.__name__.removesuffix("Request")
    with pytest.raises(Unexpected, match=f"^overlayd {op} returned unexpected response: "):
        getattr(manager, name)(*args)


@pytest.mark.parametrize(("name", "args", "kind"), ANY, ids=lambda v: v if isinstance(v, str) else "")
def test_any_answer_does_where_nothing_is_given(daemon, manager, name, args, kind):
    daemon.next(kind, reply(ODD))
    getattr(manager, name)(*args)


def test_a_daemon_that_hangs_is_given_up_on(daemon, manager):
    manager.with_timeouts(Timeouts(call=0.2))
    daemon.next(wire.AttachContainer, silence)
    with pytest.raises(DeadlinePassed, match=r"did not answer AttachContainer within 0\.2 s"):
        manager.attach_container(1, "web")
    manager.with_timeouts(Timeouts(30, 30))
    manager.detach_container(1)
    assert daemon.ops() == ["attach_container", "detach_container"]


def test_events_are_handed_on(daemon):
    heard = []
    manager = OverlayManager("p", "i", socket=daemon.path, on_event=heard.append)
    event = wire.NatEndpointChanged(KEY, "1.2.3.4:5")
    daemon.next(wire.StatusRequest, before(wire.Status(peer_count=0, service_count=0), event))
    manager.status()
    assert heard == [event]


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan"), 1e12])
def test_there_is_no_for_ever(seconds):
    with pytest.raises(ValueError, match="cannot take"):
        Timeouts(call=seconds)
    with pytest.raises(ValueError, match="cannot take"):
        Timeouts(nat_tick=seconds)


def test_leaving_the_block_hangs_up(daemon):
    with manager_of(daemon) as manager:
        manager.status()
        first = manager._channel._session.connection(Deadline(1))
    with pytest.raises(TransportError):
        first.round_trip(wire.StatusRequest(), Deadline(1))
    assert manager.status().peer_count == 0
    assert daemon.accepted == 2


def test_after_a_shutdown_the_next_call_dials(daemon, manager):
    manager.shutdown()
    assert daemon.ops() == ["shutdown"]
    assert manager.service_count() == 0
    assert daemon.accepted == 2


# edge peers, names, resolvers


def test_edge_peers(daemon, manager):
    config = manager.mint_edge_peer("ci", 600, "edge.example.net:51420", ["web"])
    assert (config.name, config.version) == ("ci", 1)
    (edge,) = manager.list_edge_peers()
    assert edge.name == "ci"
    manager.revoke_edge_peer("ci")
    manager.revoke_edge_peer("ci")
    assert manager.list_edge_peers() == []
    assert daemon.asked[0].allow == ("web",)


def test_scoped_resolvers_are_macos_only(manager):
    with pytest.raises(Refused, match="macOS-only"):
        manager.write_scoped_resolver("overlay.local", "10.200.0.17", 15353)
    with pytest.raises(Refused, match="macOS-only"):
        manager.remove_scoped_resolver("overlay.local")


# NAT


def test_nat_is_on_unless_configured_off(daemon, manager):
    assert manager.nat_enabled()
    assert manager.start_nat_traversal()
    manager.nat_maintenance_tick()
    assert daemon.ops() == ["nat_tick"]
    manager.with_nat_config(NatSettings(enabled=False))
    assert not manager.start_nat_traversal()
    manager.nat_maintenance_tick()
    assert manager.nat_status_snapshot() == NatSnapshot()
    assert daemon.ops() == []


def test_a_snapshot_leaves_out_what_cannot_be_used(daemon, manager):
    good = wire.Candidate("server-reflexive", "[2001:db8::5]:3478", 1)
    bad = [wire.Candidate("host", "nowhere", 1), wire.Candidate("carrier-pigeon", "1.2.3.4:5", 1)]
    peers = (wire.NatPeer("k", "relayed"), wire.NatPeer("anything", "whatever", "else"))
    daemon.next(wire.NatStatusRequest, reply(wire.NatStatus((good, *bad), peers, 99)))
    assert manager.nat_status_snapshot() == NatSnapshot((good,), peers, 99)
    for answer in (NO, wire.Ok()):
        daemon.next(wire.NatStatusRequest, reply(answer))
        assert manager.nat_status_snapshot() == NatSnapshot()


def test_the_nat_configuration_is_sent_without_labels(daemon, manager):
    nat = NatSettings(
        stun_servers=(StunServer("stun.example.net:3478", "home"),),
        turn_servers=(TurnServer("turn.example.net:3478", "u", "p", "eu"),),
        hole_punch_timeout_secs=15,
        relay_server=RelayServer(3478, "198.51.100.4:3478", 100),
    )
    manager.with_nat_config(nat).with_relay_credential("secret").setup_global_overlay()
    sent = daemon.asked[1].nat
    assert sent == wire.NatConfig(
        enabled=True,
        stun_servers=("stun.example.net:3478",),
        turn_servers=(wire.Turn("turn.example.net:3478", "u", "p"),),
        hole_punch_timeout_secs=15,
        relay_server=wire.Relay(3478, "198.51.100.4:3478", 100, "secret"),
    )
    manager.with_relay_credential(" \t").setup_global_overlay()
    assert daemon.asked[-2].nat.relay_server.auth_credential is None
    manager.with_relay_credential("secret").with_nat_config(NatSettings()).setup_global_overlay()
    assert daemon.asked[-2].nat.relay_server is None
    manager.with_nat_config(None).setup_global_overlay()
    assert daemon.asked[-2].nat is None


# peers


def test_our_daemon_is_sent_what_zlayers_client_sends(tmp_path):
    daemon = FakeOverlayd(tmp_path / "o.sock", "zlayer-cni/1.0").start()
    manager = manager_of(daemon)
    peer = PeerInfo(KEY, "203.0.113.7:51420", "10.200.0.17/32", 25.9)
    manager.setup_service_overlay("db", "dedicated")
    daemon.ops()
    candidates = [wire.Candidate("host", "192.168.1.5:51420", 100)]
    manager.add_global_peer_with_candidates(peer, candidates)
    manager.add_service_peer("db", peer, "10.200.9.0/26")
    manager.add_allowed_ip(KEY, "10.9.0.0/26")
    manager.remove_allowed_ip(KEY, "10.9.0.0/26")
    manager.remove_service_peer("db", KEY)
    scope = wire.ServiceScope("db")
    assert daemon.asked == [
        wire.StatusRequest(),
        wire.AddPeer(KEY, "203.0.113.7:51420", "10.200.0.17/32", 25, tuple(candidates), wire.GlobalScope()),
        wire.AddPeer(KEY, "203.0.113.7:51420", "10.200.0.17/32", 25, (), scope),
        wire.AddAllowedIp(KEY, "10.200.9.0/26", scope),
        wire.AddAllowedIp(KEY, "10.9.0.0/26"),
        wire.RemoveAllowedIp(KEY, "10.9.0.0/26"),
        wire.RemovePeer(KEY, scope),
    ]
    manager.close()
    daemon.stop()


def test_the_first_failure_of_a_service_peer_is_raised_without_going_back(tmp_path):
    daemon = FakeOverlayd(tmp_path / "o.sock", "zlayer-cni/1.0").start()
    manager = manager_of(daemon)
    manager.setup_service_overlay("db", "dedicated")
    daemon.next(wire.AddAllowedIp, reply(NO))
    with pytest.raises(Refused):
        manager.add_service_peer("db", PeerInfo(KEY, "1.2.3.4:5", "10.200.9.1/32"), "10.200.9.0/26")
    assert ("db", KEY) in daemon.peers
    manager.close()
    daemon.stop()


def peer(allowed="10.200.0.17/32"):
    return PeerInfo(KEY, "203.0.113.7:51420", allowed)


def test_a_peer_of_a_service_without_a_dedicated_device_is_refused(daemon, manager):
    manager.setup_service_overlay("db")
    with pytest.raises(Refused, match="no dedicated overlay for service db"):
        manager.add_service_peer("db", peer(), "10.200.9.0/26")


def test_a_zlayer_daemon_never_sees_a_key_twice(theirs, plain):
    plain.setup_service_overlay("db", "dedicated")
    theirs.ops()
    for allowed in ("10.200.0.17/32", "10.200.0.18/32"):
        plain.add_global_peer(peer(allowed))
    plain.add_service_peer("db", peer("10.200.9.1/32"), "10.200.9.0/26")
    plain.add_service_peer("db", peer("10.200.9.1/32"), "10.200.9.0/26")
    assert not theirs.wedged
    assert theirs.peers == {(None, KEY): ["10.200.0.18/32"], ("db", KEY): ["10.200.9.0/26"]}
    assert theirs.ops() == ["status"] + ["remove_peer", "add_peer"] * 4


def test_a_second_program_does_not_see_a_key_twice_either(theirs, plain):
    plain.add_global_peer(peer())
    other = manager_of(theirs)
    other.add_global_peer(peer("10.200.0.99/32"))
    assert theirs.peers == {(None, KEY): ["10.200.0.99/32"]}
    other.close()


def test_allowed_ips_are_folded_into_the_one_there_is_room_for(theirs, plain):
    plain.add_global_peer(peer("10.200.9.0/27, 10.200.9.32/27"))
    assert theirs.peers[None, KEY] == ["10.200.9.0/26"]
    plain.add_allowed_ip(KEY, "10.200.9.64/26")
    assert theirs.peers[None, KEY] == ["10.200.9.0/25"]
    plain.remove_allowed_ip(KEY, "10.200.9.64/26")
    assert theirs.peers[None, KEY] == ["10.200.9.0/26"]
    plain.remove_allowed_ip(KEY, "10.200.9.64/26")  # not there any more: nothing to do
    plain.remove_allowed_ip(KEY, "10.200.9.0/27")
    plain.remove_allowed_ip(KEY, "10.200.9.32/27")
    assert (None, KEY) not in theirs.peers
    plain.add_allowed_ip(KEY, "10.200.9.0/26")
    assert theirs.peers[None, KEY] == ["10.200.9.0/26"]
    assert not theirs.wedged


def test_what_has_no_room_is_said_plainly(theirs, plain):
    with pytest.raises(UnsupportedPeerChange, match="takes one CIDR per peer") as caught:
        plain.add_global_peer(peer("10.200.0.17/32,10.200.9.0/26,nonsense"))
    assert caught.value.not_programmed == ("10.200.0.17/32", "nonsense")
    assert theirs.peers[None, KEY] == ["10.200.9.0/26"]
    with pytest.raises(UnsupportedPeerChange) as caught:
        plain.add_allowed_ip(KEY, "10.77.0.0/26")
    assert caught.value.not_programmed == ("10.77.0.0/26",)
    assert theirs.peers[None, KEY] == ["10.200.9.0/26"]
    assert not theirs.wedged


def test_a_peer_of_another_program_is_left_alone(theirs, plain):
    theirs.peers[None, KEY] = ["10.200.0.17/32"]
    for change in (plain.add_allowed_ip, plain.remove_allowed_ip):
        with pytest.raises(UnsupportedPeerChange, match="not added by this program"):
            change(KEY, "10.200.0.17/32")
    assert theirs.ops() == ["status"]


def test_candidates_are_not_given_to_a_zlayer_daemon(theirs, plain, caplog):
    plain.add_global_peer_with_candidates(peer(), [wire.Candidate("host", "192.168.1.5:51420", 100)])
    assert theirs.asked[-1].candidates == ()
    assert "NAT candidates were not sent" in caplog.text


def test_where_the_removal_fails_nothing_is_added(theirs, plain):
    plain.add_global_peer(peer())
    theirs.ops()
    theirs.next(wire.RemovePeer, reply(NO))
    with pytest.raises(Refused):
        plain.add_global_peer(peer())
    assert theirs.ops() == ["remove_peer"]


def test_a_peer_that_is_refused_does_not_cost_the_one_that_was_there(theirs, plain):
    plain.add_global_peer(peer())
    theirs.ops()
    theirs.next(wire.AddPeer, reply(NO))
    with pytest.raises(Refused):
        plain.add_global_peer(peer("10.77.0.0/26"))
    assert theirs.ops() == ["remove_peer", "add_peer", "remove_peer", "add_peer"]
    assert theirs.peers == {(None, KEY): ["10.200.0.17/32"]}
    plain.add_allowed_ip(KEY, "10.200.0.16/32")  # and it is still this manager's
    assert theirs.peers == {(None, KEY): ["10.200.0.16/31"]}
    assert not theirs.wedged


def test_where_it_cannot_be_given_back_either_the_first_refusal_is_what_is_raised(theirs, plain, caplog):
    plain.add_global_peer(peer())
    theirs.ops()
    for _ in range(2):
        theirs.next(wire.AddPeer, reply(NO))
    with pytest.raises(Refused, match="no"):
        plain.add_global_peer(peer("10.77.0.0/26"))
    assert theirs.ops() == ["remove_peer", "add_peer"] * 2
    assert "adding it again as it was failed" in caplog.text
    assert theirs.peers == {}


@pytest.mark.parametrize(
    "bad",
    [
        PeerInfo(KEY, "203.0.113.7:51420", "10.77.0.0/26", -1),
        PeerInfo(KEY, "203.0.113.7:51420", "10.77.0.0/26", float("nan")),
        PeerInfo(KEY, "203.0.113.7:51420", "10.77.0.0/26", float("inf")),
        PeerInfo(KEY, "\ud800:51420", "10.77.0.0/26"),
        PeerInfo(KEY, "203.0.113.7:51420", "\ud800"),
    ],
    ids=["negative", "nan", "inf", "endpoint", "cidr"],
)
def test_a_peer_that_cannot_be_said_does_not_cost_the_one_that_was_there(theirs, plain, bad):
    plain.add_global_peer(peer())
    theirs.ops()
    with pytest.raises(CodecError):
        plain.add_global_peer(bad)
    assert theirs.ops() == []
    assert theirs.peers == {(None, KEY): ["10.200.0.17/32"]}


@pytest.mark.parametrize("kind", [wire.AddPeer, wire.RemovePeer, wire.StatusRequest])
def test_a_connection_that_breaks_between_does_not_repeat_an_add_alone(theirs, plain, kind):
    """Not even when the daemon did what it was asked before it hung up."""

    def do_and_hang_up(sock, id_):
        theirs._do(theirs.asked[-1])
        hang_up(sock, id_)

    theirs.next(kind, do_and_hang_up)
    plain.add_global_peer(peer())
    assert not theirs.wedged
    assert theirs.peers == {(None, KEY): ["10.200.0.17/32"]}


def test_threads_that_change_one_peer_do_not_wedge_the_daemon(theirs, plain):
    threads = [threading.Thread(target=plain.add_global_peer, args=(peer(f"10.0.0.{n}/32"),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not theirs.wedged
    assert len(theirs.peers) == 1


def test_a_daemon_whose_status_fails_is_taken_for_zlayers(theirs, plain):
    theirs.next(wire.StatusRequest, reply(NO))
    theirs.server = "zlayer-cni/1.0"
    plain.add_global_peer(peer())
    assert theirs.ops() == ["status", "remove_peer", "add_peer"]


def test_the_daemon_is_asked_who_it_is_on_every_new_connection(theirs, plain):
    plain.add_global_peer(peer())
    theirs.stop()
    theirs.forget()
    theirs.server = "zlayer-cni/1.0"
    theirs.start()
    theirs.ops()
    plain.add_global_peer(peer("10.0.0.1/32,10.77.0.1/32"))
    assert theirs.ops() == ["status", "add_peer"]


@pytest.mark.parametrize(
    ("cidrs", "one", "left"),
    [
        ([], "", ()),
        (["what you like"], "what you like", ()),
        (["10.0.0.0/26", "10.0.0.9/32"], "10.0.0.0/26", ()),
        (["10.0.0.9/32", "10.0.0.8/32"], "10.0.0.8/31", ()),
        (["10.0.0.0/255.255.255.192", "10.0.0.64/26"], "10.0.0.64/26", ("10.0.0.0/255.255.255.192",)),
        (["10.0.0.9", "10.0.0.64/26"], "10.0.0.64/26", ("10.0.0.9",)),
        (["10.0.0.5/26", "10.0.0.64/26"], "10.0.0.0/25", ()),
        (["10.0.0.64/26", "10.0.0.128/26"], "10.0.0.64/26", ("10.0.0.128/26",)),
        (["10.0.0.128/26", "10.0.0.64/26"], "10.0.0.128/26", ("10.0.0.64/26",)),
        (["10.0.0.0/26", "fd00::/64"], "10.0.0.0/26", ("fd00::/64",)),
        (["fd00::/64", "fd00:0:0:1::/64", "10.0.0.0/8"], "fd00::/63", ("10.0.0.0/8",)),
        (["x", "y"], "", ("x", "y")),
    ],
)
def test_aggregating(cidrs, one, left):
    assert aggregate(cidrs) == (one, left)


def test_every_failure_is_an_overlayd_error():
    for kind in (Refused, Unexpected, TransportError, DeadlinePassed, UnsupportedPeerChange):
        assert issubclass(kind, OverlaydError)
