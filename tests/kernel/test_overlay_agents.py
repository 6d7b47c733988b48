"""The overlay door of a real daemon: what ZLayer's agents ask, and what is then in the kernel."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sqlite3
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni import __version__, answers, naming
from cni.cli.ask import ask as ask_tool
from cni.overlay import wire
from tests.kernel.overlayd import (
    A_KEY,
    B_KEY,
    KIND,
    PREFIX,
    Agent,
    Node,
    address_inside,
    inside,
    node,
    reaches,
    wait_for,
)

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture
def here() -> Iterator[Node]:
    """A node whose daemon has just started, with addresses that need no rest."""
    with node("a") as made:
        (made.directory / "data").mkdir()
        (made.directory / "data").chmod(0o755)
        (made.directory / "data/overlayd.yaml").write_text(f"address_cooldown: 0\nattach: {KIND}\n")
        made.start()
        yield made


@pytest.fixture
def agent(here: Node) -> Iterator[Agent]:
    made = here.agent()
    yield made
    made.close()


# --- the node ----------------------------------------------------------------------------------------------------


def test_a_fresh_node_says_little_and_who_it_is(agent: Agent) -> None:
    assert agent.status() == wire.Status(
        overlay_cidr="10.200.0.0/16", peer_count=0, service_count=0, server=f"zlayer-cni/{__version__}"
    )


def test_setup_is_answered_by_the_devices_name_and_told_by_status(agent: Agent, here: Node) -> None:
    agent.ok(wire.SetLocalNodeId(3))
    agent.ok(wire.SetLocalWgPubkey(A_KEY))
    assert agent.setup_global() == wire.BridgeName("zl-prod-42-g")
    status = agent.status()
    assert (status.interface, status.node_ip, status.slice_cidr) == ("zl-prod-42-g", "10.200.0.17", "10.200.0.16/28")
    assert status.public_key not in (None, A_KEY)
    assert agent.setup() == naming.service_bridge("prod", "42", "web")
    here.end()
    here.start()
    assert here.agent().status() == replaced(status, service_count=1)


def replaced(status: wire.Status, **changes: object) -> wire.Status:
    values = {name: getattr(status, name) for name in wire.Status.__struct_fields__}
    return wire.Status(**{**values, **changes})


def test_the_node_id_decides_subnets_to_come_and_no_others(agent: Agent) -> None:
    agent.ok(wire.SetLocalNodeId(1))
    agent.setup()
    first = agent.ask(wire.AllocateIp("web", False))
    assert first == wire.IpReply("10.200.40.66")  # contract 6.4: ("web", "1") -> 10.200.40.64/26
    agent.ok(wire.SetLocalNodeId(0))
    assert agent.ask(wire.AllocateIp("web", False)) == wire.IpReply("10.200.40.67")
    agent.ok(wire.TeardownServiceOverlay("web"))
    agent.setup()
    assert agent.ask(wire.AllocateIp("web", False)) == wire.IpReply("10.200.187.130")


def test_setting_up_again_keeps_leases_and_a_change_under_them_is_refused(agent: Agent, here: Node) -> None:
    agent.setup_global()
    agent.setup()
    pid = here.process()
    mine = agent.attach(pid)
    leased = agent.ask(wire.AllocateIp("elsewhere", False))
    assert leased == wire.IpReply("10.200.0.18")
    assert agent.setup_global() == wire.BridgeName("zl-prod-42-g")
    assert agent.ask(wire.AllocateIp("elsewhere", False)) == wire.IpReply("10.200.0.19")
    for changes in ({"cluster_cidr": "10.201.0.0/16", "slice_cidr": None}, {"slice_cidr": "10.200.0.64/28"}):
        heard = agent.setup_global(**changes)
        assert isinstance(heard, wire.Err)
        assert " cannot replace " in heard.message
    assert agent.attach(pid) == mine


def test_a_new_range_on_an_idle_node_is_taken_over(agent: Agent, here: Node) -> None:
    agent.setup_global(cluster_cidr="10.77.0.0/16", slice_cidr="10.77.3.0/28")
    agent.setup()
    pid = here.process()
    assert agent.attach(pid).startswith("10.77.")
    assert reaches(pid, "10.77.3.1")
    addresses = {each["local"] for link in here.ip("address", "show", "dev", "lo") for each in link["addr_info"]}
    assert "10.77.3.1" in addresses
    assert "10.200.0.1" not in addresses


# --- services ----------------------------------------------------------------------------------------------------


def test_the_modes_answers(agent: Agent) -> None:
    agent.setup_global()
    name = naming.service_bridge
    assert agent.ask(wire.SetupServiceOverlay("a", "auto")) == wire.ServiceOverlay(name("prod", "42", "a"), "auto")
    assert agent.ask(wire.SetupServiceOverlay("b", "isolated")) == wire.ServiceOverlay(name("prod", "42", "b"), "auto")
    shared = wire.ServiceOverlay(naming.shared_bridge("prod", "42"), "shared")
    assert agent.ask(wire.SetupServiceOverlay("c", "shared")) == shared
    assert agent.ask(wire.SetupServiceOverlay("d", "shared")) == shared
    assert agent.status().service_count == 4


def test_a_dedicated_service_has_key_and_port_and_the_bridges_name_every_time(agent: Agent, here: Node) -> None:
    agent.setup_global()
    first = agent.ask(wire.SetupServiceOverlay("db", "dedicated"))
    assert isinstance(first, wire.ServiceOverlay)
    assert (first.name, first.mode, first.wg_port) == (naming.service_bridge("prod", "42", "db"), "dedicated", 51421)
    assert first.overlay_ip is not None
    assert first.subnet == first.overlay_ip.removesuffix(first.overlay_ip.split(".")[-1]) + f"{last_slot(first)}/26"
    assert agent.ask(wire.SetupServiceOverlay("db", "dedicated")) == first
    assert agent.setup("db", "auto") == first.name  # what has no wish of its own does not cost it its key
    assert agent.ask(wire.SetupServiceOverlay("db", "dedicated")) == first
    (told,) = agent.status().dedicated_services
    assert (told.service, told.interface) == ("db", naming.dedicated_device("prod", "42", "db"))
    assert (told.public_key, told.listen_port, told.peer_count) == (first.wg_public_key, 51421, 0)
    here.end(signal.SIGKILL)
    here.start()
    assert here.agent().ask(wire.SetupServiceOverlay("db", "dedicated")) == first


def last_slot(answer: wire.ServiceOverlay) -> int:
    assert answer.overlay_ip is not None
    return int(answer.overlay_ip.split(".")[-1]) - 1


def test_teardown_takes_everything_of_the_service_and_can_be_repeated(agent: Agent, here: Node) -> None:
    bridge = agent.setup()
    pid = here.process()
    agent.attach(pid)
    agent.ok(wire.TeardownServiceOverlay("web"))
    agent.ok(wire.TeardownServiceOverlay("web"))
    assert here.links().isdisjoint({bridge, f"veth-{pid}-s"})
    assert "eth0" not in {link["ifname"] for link in inside(pid, "link")}
    assert agent.status().service_count == 0
    agent.setup()
    agent.attach(pid)


def test_global_teardown_leaves_a_node_that_can_be_set_up_again(agent: Agent, here: Node) -> None:
    agent.setup_global()
    agent.setup()
    agent.setup("pool", "shared")
    pid = here.process()
    agent.attach(pid)
    agent.ok(wire.TeardownGlobalOverlay())
    agent.ok(wire.TeardownGlobalOverlay())
    assert here.links() == {"lo"}
    assert agent.error(wire.AttachContainer(wire.LinuxPid(pid), "web", False)).startswith("no service bridge")
    agent.setup_global()
    agent.setup()
    agent.attach(pid)
    assert reaches(pid, "10.200.0.17")


def test_prune_takes_idle_bridges_of_ours_and_no_others(agent: Agent, here: Node) -> None:
    used, idle, listed, leased = (agent.setup(name) for name in ("used", "idle", "listed", "leased"))
    agent.attach(here.process(), "used")
    agent.ask(wire.AllocateIp("leased", False))
    here.ip("link", "add", "zl-x-1-other-b", "type", "bridge")
    assert agent.ask(wire.PruneOrphanBridges((listed,))) == wire.PrunedBridges((idle,))
    assert here.segments() >= {used, listed, leased, "zl-x-1-other-b"}
    assert idle not in here.segments()
    assert agent.ask(wire.PruneOrphanBridges((listed,))) == wire.PrunedBridges(())


def test_names_the_kernel_would_twist_are_refused(agent: Agent, here: Node) -> None:
    agent.setup_global(deployment="p", instance_id="1")
    for service in ("a%d", "a\0b", "a/b", "a b", 'a"b', naming.SHARED_BRIDGE_KEY):
        agent.error(wire.SetupServiceOverlay(service, "auto"))
    assert here.links() == {"lo", "zl-p-1-g"}
    assert agent.status().service_count == 0
    agent.setup("naïve-name")


def test_a_service_in_use_does_not_become_shared(agent: Agent, here: Node) -> None:
    agent.setup("web", "auto")
    pid = here.process()
    agent.attach(pid)
    assert "cannot become shared now" in agent.error(wire.SetupServiceOverlay("web", "shared"))
    agent.detach(pid)
    shared = agent.setup("web", "shared")
    mine = agent.attach(pid)
    assert master(here, pid) == (shared if KIND == "bridge" else "")
    agent.detach(pid)
    own = agent.setup("web", "auto")
    assert agent.attach(pid) != mine
    assert master(here, pid) == (own if KIND == "bridge" else "")


# --- containers --------------------------------------------------------------------------------------------------


def test_a_container_has_its_address_route_and_neighbours(agent: Agent, here: Node) -> None:
    bridge = agent.setup()
    one, two = here.process(), here.process()
    first, second = agent.attach(one), agent.attach(two)
    assert first != second
    assert address_inside(one) == [f"{first}/{PREFIX}"]
    (default,) = [route for route in inside(one, "route") if route["dst"] == "default"]
    assert default["dev"] == "eth0"
    assert master(here, one) == (bridge if KIND == "bridge" else "")
    assert reaches(one, default["gateway"])
    assert reaches(one, second)
    assert reaches(two, first)


def master(here: Node, pid: int) -> str:
    """The bridge on which the host end of a process's container is; empty for none."""
    return str(here.ip("link", "show", f"veth-{pid}-s")[0].get("master", ""))


def test_services_reach_each_other(agent: Agent, here: Node) -> None:
    agent.setup("web")
    agent.setup("db")
    one, two = here.process(), here.process()
    agent.attach(one, "web")
    assert reaches(one, agent.attach(two, "db"))


def test_an_isolation_network_keeps_its_own(agent: Agent, here: Node) -> None:
    agent.setup("web")
    one, two, outside = here.process(), here.process(), here.process()
    agent.attach(one, isolation_network="blue")
    member, stranger = agent.attach(two, isolation_network="blue"), agent.attach(outside)
    assert reaches(one, member)
    assert not reaches(one, stranger)
    assert not reaches(outside, member)


def test_the_same_process_asks_again_and_gets_the_same(agent: Agent, here: Node) -> None:
    agent.setup()
    pid = here.process()
    mine = agent.attach(pid)
    mac = here.ip("link", "show", f"veth-{pid}-s")[0]["ifindex"]
    assert here.agent().ask(wire.AttachContainer(wire.LinuxPid(pid), "web", False)) == wire.Attached(mine)
    assert here.ip("link", "show", f"veth-{pid}-s")[0]["ifindex"] == mac
    here.ip("link", "delete", f"veth-{pid}-s")
    assert agent.attach(pid) == mine  # and what was lost is made again
    assert address_inside(pid) == [f"{mine}/{PREFIX}"]


def test_one_process_is_in_one_place(agent: Agent, here: Node) -> None:
    agent.setup("web")
    bridge = agent.setup("db")
    pid = here.process()
    first = agent.attach(pid, "web")
    second = agent.attach(pid, "db")
    assert address_inside(pid) == [f"{second}/{PREFIX}"]
    assert master(here, pid) == (bridge if KIND == "bridge" else "")
    assert here.held() == {second}
    assert first != second


def test_detaching_leaves_nothing_and_can_be_repeated(agent: Agent, here: Node) -> None:
    agent.setup()
    pid = here.process()
    assert here.held() == set()
    mine = agent.attach(pid)
    assert here.held() == {mine}
    agent.detach(pid)
    agent.detach(pid)
    assert f"veth-{pid}-s" not in here.links()
    assert "eth0" not in {link["ifname"] for link in inside(pid, "link")}
    assert here.held() == set()
    here.kill(pid)
    agent.detach(pid)
    agent.detach(2**32 - 1)


def test_a_process_that_is_gone_is_detached_all_the_same(agent: Agent, here: Node) -> None:
    agent.setup()
    pid = here.process()
    agent.attach(pid)
    here.kill(pid)
    agent.detach(pid)
    assert here.held() == set()
    assert f"veth-{pid}-s" not in here.links()


def test_an_ephemeral_last_leaver_takes_the_service_along(agent: Agent, here: Node) -> None:
    bridge = agent.setup()
    one, two = here.process(), here.process()
    agent.attach(one, ephemeral=True)
    agent.attach(two)
    agent.detach(one)
    assert bridge in here.segments()
    agent.detach(two)
    assert bridge in here.segments()
    agent.attach(one, ephemeral=True)
    agent.detach(one)
    assert bridge not in here.segments()
    agent.setup()
    for ephemeral in (True, False):  # what was said last counts
        agent.attach(one, ephemeral=not ephemeral)
        agent.attach(one, ephemeral=ephemeral)
        agent.detach(one)
        assert (bridge in here.segments()) is not ephemeral
        agent.setup()


def test_what_cannot_be_attached(agent: Agent, here: Node) -> None:
    assert here.daemon is not None
    pid = here.process()
    refused = agent.error(wire.AttachContainer(wire.LinuxPid(pid), "web", False))
    assert refused == "no service bridge for service web; call setup_service_overlay() first"
    agent.setup()
    gone = here.process()
    here.kill(gone)
    assert agent.error(wire.AttachContainer(wire.LinuxPid(gone), "web", False)) == (
        f"overlay engine error: Failed to open /proc/{gone}/ns/net: No such file or directory (os error 2)"
    )
    for host in (here.daemon.pid, os.getpid()):
        assert "the host's own network namespace" in agent.error(
            wire.AttachContainer(wire.LinuxPid(host), "web", False)
        )
    inside(pid, "link", "add", "eth0", "type", "bridge")
    assert "File exists" in agent.error(wire.AttachContainer(wire.LinuxPid(pid), "web", False))
    assert inside(pid, "-d", "link", "show", "eth0")[0]["linkinfo"]["info_kind"] == "bridge"
    for words in (["link", "set", "eth0", "name", "br9"], ["address", "add", "192.0.2.1/24", "dev", "br9"]):
        inside(pid, *words)
    inside(pid, "link", "set", "br9", "up")
    inside(pid, "route", "add", "default", "via", "192.0.2.2")
    assert agent.error(wire.AttachContainer(wire.LinuxPid(pid), "web", False)) == (
        "overlay engine error: container netns ops: default route: File exists (os error 17)"
    )
    assert not [link for link in here.links() if link.startswith("veth-")]
    inside(pid, "route", "delete", "default")
    assert agent.attach(pid) == agent.attach(pid)


def test_a_strangers_link_is_not_detached(agent: Agent, here: Node) -> None:
    here.ip("link", "add", "veth-4242-s", "type", "bridge")
    agent.detach(4242)
    assert "veth-4242-s" in here.links()


def test_a_recycled_pid_is_another_container() -> None:
    """In a PID namespace of the test's own, where the next PID can be said (/proc/sys/kernel/ns_last_pid)."""
    script = r"""
        set -e
        ip link set lo up
        PYTHONPATH=$ROOT $PYTHON -m cni overlayd --run-dir $DIR/run --data-dir $DIR/data 2>$DIR/log &
        daemon=$!
        while read -r wish; do
            kill -STOP $daemon  # its threads take numbers too
            until grep -q '^State:.T' /proc/$daemon/status; do :; done
            echo 4999 > /proc/sys/kernel/ns_last_pid
            unshare -n sleep 3600 &
            made=$!
            kill -CONT $daemon
            until [[ $(readlink /proc/$made/ns/net) != "$(readlink /proc/$$/ns/net)" ]]; do :; done
            echo "pid $made"
            read -r wish
            kill $made; wait $made || true
            echo gone
        done
    """
    with node("r") as made:
        shell = subprocess.Popen(
            ["ip", "netns", "exec", made.name, "unshare", "-p", "-f", "--mount-proc", "bash", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "DIR": str(made.directory), "PYTHON": python(), "ROOT": str(repository())},
        )
        assert shell.stdin is not None
        assert shell.stdout is not None
        try:
            wait_for(lambda: Path(made.socket).exists(), "the daemon")
            agent = made.agent()
            agent.setup()
            seen = []
            for _ in range(2):
                shell.stdin.write("begin\n")
                shell.stdin.flush()
                assert shell.stdout.readline() == "pid 5000\n"
                seen.append(agent.attach(5000))
                assert "veth-5000-s" in made.links()
                shell.stdin.write("end\n")
                shell.stdin.flush()
                assert shell.stdout.readline() == "gone\n"
            assert seen[0] != seen[1]  # the first one's address rests
            agent.detach(5000)
            assert "veth-5000-s" not in made.links()
        finally:
            shell.stdin.close()
            shell.kill()
            shell.wait(10)


def python() -> str:
    import sys

    return sys.executable


def repository() -> Path:
    return Path(__file__).resolve().parents[2]


def test_leases_are_returned_by_release_alone(agent: Agent, here: Node) -> None:
    agent.setup()
    pid = here.process()
    held = agent.attach(pid)
    leased = agent.ask(wire.AllocateIp("web", True))
    assert isinstance(leased, wire.IpReply)
    assert leased.ip != held
    for address in (held, "10.200.9.9", "192.0.2.1", "fd00::1", "10.200.0.1"):
        agent.ok(wire.ReleaseIp(address))  # none of these was leased: nothing happens
    assert here.held() == {held, leased.ip}
    agent.ok(wire.ReleaseIp(leased.ip))
    agent.ok(wire.ReleaseIp(leased.ip))
    assert here.held() == {held}


def test_a_full_service_grows_for_leases_too(agent: Agent) -> None:
    agent.setup()
    leases = {agent.ask(wire.AllocateIp("web", False)) for _ in range(70)}
    assert len(leases) == 70
    assert all(isinstance(each, wire.IpReply) for each in leases)


# --- restarts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_containers_outlive_the_daemon(here: Node, number: int) -> None:
    agent = here.agent()
    agent.setup_global()
    agent.setup()
    one, two = here.process(), here.process()
    first, second = agent.attach(one), agent.attach(two)
    leased = agent.ask(wire.AllocateIp("web", False))
    assert here.end(number) == (0 if number == signal.SIGTERM else -number)
    assert reaches(one, second)
    here.start()
    agent = here.agent()
    assert agent.attach(one) == first
    assert agent.setup() == naming.service_bridge("prod", "42", "web")
    assert agent.attach(here.process()) not in (first, second)
    assert agent.ask(wire.AllocateIp("web", False)) != leased
    agent.detach(one)
    assert f"veth-{one}-s" not in here.links()


def test_shutdown_answers_and_then_ends_like_a_signal(here: Node) -> None:
    agent, idle = here.agent(), here.agent()
    agent.setup()
    one, two = here.process(), here.process()
    agent.attach(one)
    neighbour = agent.attach(two)
    agent.ok(wire.Shutdown())
    assert here.daemon is not None
    assert here.daemon.wait(60) == 0
    assert idle.sock.recv(1) == b""
    assert not Path(here.socket).exists()
    assert reaches(one, neighbour)


# --- the socket --------------------------------------------------------------------------------------------------


def test_a_second_daemon_leaves_the_first_ones_socket_and_goes_on_without(here: Node) -> None:
    here.agent().setup()
    with node("b") as other:
        other.start("--socket", here.socket)
        assert other.note("overlay-socket-closed")
        assert here.agent().status().service_count == 1
        other.end()
    assert here.agent().status().service_count == 1


def test_thousands_of_idle_connections(here: Node) -> None:
    assert here.daemon is not None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    fds = Path(f"/proc/{here.daemon.pid}/fd")
    here.agent().setup()
    before = len(list(fds.iterdir()))
    clients = []
    try:
        for number in range(2500):
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(60)
            sock.connect(here.socket)
            if number % 5 == 0:
                sock.sendall(struct.pack("<I", 5000) + b"{")
            clients.append(sock)
        pid = here.process()
        agent, began = here.agent(), time.monotonic()
        agent.attach(pid)
        assert agent.status().service_count == 1
        assert time.monotonic() - began < 20  # it waits for none of them
        agent.close()
    finally:
        for sock in clients:
            sock.close()
    # A thread of the daemon's that had nothing to do before may have opened a netlink socket, to keep.
    wait_for(lambda: len(list(fds.iterdir())) <= before + 20, "the connections to be forgotten")


def test_many_agents_at_once_get_one_address_each(here: Node) -> None:
    here.agent().setup()
    pids = [here.process() for _ in range(12)]
    got: list[str] = []

    def attach(pid: int) -> None:
        for _ in range(2):
            with contextlib.closing(here.agent()) as agent:
                got.append(agent.attach(pid))

    threads = [threading.Thread(target=attach, args=(pid,)) for pid in pids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 24
    assert len(set(got)) == 12


# --- guests, hosts, peers, edges ---------------------------------------------------------------------------------


def guest(name: str = "vm-1", service: str = "web", **more: object) -> wire.AttachContainer:
    return wire.AttachContainer(wire.GuestManaged(name), service, False, **more)  # type: ignore[arg-type]


def host(name: str = "p-1", **more: object) -> wire.AttachContainer:
    return wire.AttachContainer(wire.HostShared(name), "web", True, **more)  # type: ignore[arg-type]


def test_guests_need_the_overlay_and_a_process_of_the_host_has_no_fence(agent: Agent) -> None:
    for ask, what in ((guest(), "guest-managed"), (host(), "host-shared")):
        assert agent.error(ask).startswith(f"{what} attach requires the global overlay to be set up first")
    agent.setup_global()
    for network in ("blue", ""):
        assert agent.error(host(isolation_network=network)) == (
            f"isolation network {network!r} cannot be put in force for a process of the host: "
            "it may use any of the host's addresses"
        )
    assert agent.status().peer_count == 0


def test_a_guest_gets_its_configuration_once_and_again(agent: Agent, here: Node) -> None:
    agent.setup_global()
    agent.setup()
    first = agent.ask(guest(dns_server="10.200.0.17", dns_domain="prod.local local"))
    assert isinstance(first, wire.GuestConfig)
    status = agent.status()
    assert (first.prefix_len, first.listen_port) == (26, 51420)
    assert (first.dns_server, first.dns_domain) == ("10.200.0.17", "prod.local local")
    assert first.peers == (wire.Peer(status.public_key or "", "10.200.0.17:51420", "10.200.0.0/16", 25),)
    assert [peer.allowed_ips for peer in status.peers] == [f"{first.overlay_ip}/32"]
    here.end(signal.SIGKILL)
    here.start()
    agent = here.agent()
    again = agent.ask(guest())
    assert isinstance(again, wire.GuestConfig)
    assert (again.private_key, again.overlay_ip) == (first.private_key, first.overlay_ip)
    assert (again.dns_server, again.dns_domain) == ("10.200.0.17", "prod.zlayer.local")  # the node's own server
    for _ in range(2):
        agent.ok(wire.DetachContainer(wire.GuestManaged("vm-1")))
    assert agent.status().peer_count == 0
    assert here.held() == set()


def test_a_guest_is_in_one_network(agent: Agent, here: Node) -> None:
    agent.setup_global()
    agent.setup()
    first = agent.ask(guest(isolation_network="blue"))
    assert isinstance(first, wire.GuestConfig)
    assert members(here) == {"blue": [first.overlay_ip]}
    again = agent.ask(guest(isolation_network="blue"))
    assert isinstance(again, wire.GuestConfig)
    assert (again.private_key, again.overlay_ip) == (first.private_key, first.overlay_ip)
    moved = agent.ask(guest(isolation_network=""))
    assert isinstance(moved, wire.GuestConfig)
    assert moved.private_key != first.private_key, "the holder of the first key is in no network any more"
    assert members(here) == {"": [moved.overlay_ip]}
    here.end(signal.SIGKILL)
    here.start()
    wait_for(lambda: members(here) == {"": [moved.overlay_ip]}, "the network of before")
    agent = here.agent()
    flat = agent.ask(guest())
    assert isinstance(flat, wire.GuestConfig)
    assert flat.private_key != moved.private_key
    assert members(here) == {}
    for _ in range(2):
        agent.ok(wire.DetachContainer(wire.GuestManaged("vm-1")))
    assert here.held() == set()


def members(node: Node) -> dict[str, list[str]]:
    """The members of isolation networks that are behind tunnels."""
    networks = ask_tool(str(node.directory / "run"), "networks", answers.Networks).networks
    return {each.isolation_network: each.remote_members for each in networks if each.isolation_network is not None}


def test_a_guest_without_a_service_here_is_of_the_slice(agent: Agent) -> None:
    agent.setup_global()
    heard = agent.ask(guest(service="elsewhere"))
    assert isinstance(heard, wire.GuestConfig)
    assert (heard.overlay_ip, heard.prefix_len) == ("10.200.0.18", 28)


def test_a_process_of_the_host_has_an_address_that_answers(agent: Agent, here: Node) -> None:
    agent.setup_global()
    agent.setup()
    mine = agent.ask(host())
    assert mine == wire.Attached("10.200.0.18")
    assert agent.ask(host()) == mine
    assert agent.ask(host("p-2")) == wire.Attached("10.200.0.19")
    pid = here.process()
    agent.attach(pid)
    local = {each["local"] for link in here.ip("address", "show", "dev", "lo") for each in link["addr_info"]}
    assert {"10.200.0.18", "10.200.0.19"} <= local
    for _ in range(2):
        agent.ok(wire.DetachContainer(wire.HostShared("p-1")))
    local = {each["local"] for link in here.ip("address", "show", "dev", "lo") for each in link["addr_info"]}
    assert "10.200.0.18" not in local


def test_windows_and_macos_are_elsewhere(agent: Agent) -> None:
    windows = wire.WindowsContainer("ctr-abc")
    assert agent.error(wire.AttachContainer(windows, "web", False)) == (
        "WindowsContainer attach is only supported on Windows"
    )
    agent.ok(wire.DetachContainer(windows))
    for ask in (wire.WriteScopedResolver("overlay.local", "10.200.0.17"), wire.RemoveScopedResolver("overlay.local")):
        assert agent.error(ask) == "overlay engine error: scoped resolver is macOS-only"


def test_peers_are_kept_and_told(agent: Agent, here: Node) -> None:
    agent.ok(wire.AddPeer(A_KEY, "203.0.113.7:51420", "10.200.0.32/28,10.200.9.0/26", 25))
    agent.ok(wire.AddPeer(A_KEY, "203.0.113.8:51420", "10.200.0.32/28", 25))
    agent.ok(wire.AddAllowedIp(A_KEY, "10.200.10.0/26"))
    here.end()
    here.start()
    agent = here.agent()
    told = wire.PeerStatus(
        "c53201039adba14be71f886da1d8dbe9eebded08cb111b75340078999aa9f038",
        "203.0.113.8:51420",
        "10.200.0.32/28,10.200.10.0/26",
        0,
    )
    assert agent.status().peers == (told,)
    agent.ok(wire.RemoveAllowedIp(A_KEY, "10.200.10.0/26"))
    agent.ok(wire.RemovePeer(A_KEY))
    agent.ok(wire.RemovePeer(A_KEY))
    assert agent.status().peer_count == 0


def test_a_services_peers_need_its_device(agent: Agent) -> None:
    scope = wire.ServiceScope("db")
    peer = wire.AddPeer(B_KEY, "203.0.113.7:51421", "10.200.9.0/26", 0, scope=scope)
    agent.setup("db", "auto")
    assert agent.error(peer) == "no dedicated overlay for service db"
    agent.setup("db", "dedicated")
    agent.ok(peer)
    agent.ok(wire.AddAllowedIp(B_KEY, "10.200.10.0/26", scope))
    status = agent.status()
    assert (status.peer_count, status.dedicated_services[0].peer_count) == (0, 1)
    agent.ok(wire.TeardownServiceOverlay("db"))
    agent.setup("db", "dedicated")
    assert agent.status().dedicated_services[0].peer_count == 0


def test_edge_peers_come_and_go(agent: Agent, here: Node) -> None:
    mint = wire.MintEdgePeer(name=" ci ", ttl_secs=600, allow=("10.200.5.0/26",), node_endpoint="edge.example.net:1")
    assert agent.error(mint).startswith("edge mint requires the global overlay to be set up first")
    agent.setup_global()
    assert agent.error(wire.MintEdgePeer(name=" ", ttl_secs=1, node_endpoint="e:1")) == (
        "edge peer name must not be empty"
    )
    before = int(time.time())
    heard = agent.ask(mint)
    assert isinstance(heard, wire.EdgeConfig)
    assert (heard.version, heard.name, heard.overlay_ip, heard.prefix_len) == (1, "ci", "10.200.0.18", 28)
    assert before <= heard.expires_at_unix - 600 <= time.time()
    assert heard.peers[0].endpoint == "edge.example.net:1"
    assert heard.peers[0].allowed_ips == "10.200.5.0/26,10.200.0.17/32"
    assert agent.error(mint) == "edge peer `ci` is already minted; revoke it before re-minting"
    here.end(signal.SIGKILL)
    here.start()
    agent = here.agent()
    (listed,) = told(agent)
    assert (listed.name, listed.public_key, listed.last_handshake_unix_secs) == ("ci", heard.public_key, None)
    assert listed.expires_at_unix - listed.minted_at_unix == 600
    assert agent.status().peer_count == 1
    for _ in range(2):
        agent.ok(wire.RevokeEdgePeer("ci"))
    assert told(agent) == ()
    assert agent.status().peer_count == 0
    again = agent.ask(wire.MintEdgePeer(name="ci", ttl_secs=2**64 - 1, node_endpoint="203.0.113.1:51420"))
    assert isinstance(again, wire.EdgeConfig)
    assert (again.overlay_ip, again.peers[0].allowed_ips) == ("10.200.0.19", "10.200.0.0/16")
    assert here.held() == {"10.200.0.19"}
    assert again.expires_at_unix == 2**64 - 1


def told(agent: Agent) -> tuple[wire.EdgePeer, ...]:
    heard = agent.ask(wire.ListEdgePeers())
    assert isinstance(heard, wire.EdgePeers)
    return heard.peers


def test_an_edge_peer_ends_when_its_time_is_over_and_not_before(agent: Agent) -> None:
    agent.setup_global()
    agent.ask(wire.MintEdgePeer(name="long", ttl_secs=600, node_endpoint="203.0.113.1:51420"))
    began = time.monotonic()
    agent.ask(wire.MintEdgePeer(name="short", ttl_secs=2, node_endpoint="203.0.113.1:51420"))
    while "short" in (names := {each.name for each in told(agent)}):
        assert names == {"short", "long"}
        assert time.monotonic() - began < 60
        time.sleep(0.05)
    assert time.monotonic() - began >= 2
    assert names == {"long"}
    assert agent.status().peer_count == 1


def test_names_are_kept(agent: Agent, here: Node) -> None:
    agent.ok(wire.RegisterDns("web", "10.200.5.2"))
    agent.ok(wire.RegisterDns("db", "10.200.5.3"))
    agent.ok(wire.UnregisterDns("db"))
    agent.ok(wire.UnregisterDns("never"))
    here.end()
    rows = sqlite3.connect(here.directory / "run/state.db").execute("SELECT body FROM record WHERE kind = 'name'")
    assert [body for (body,) in rows] == [b'{"name":"web","ip":"10.200.5.2"}']


def test_nat_is_looked_after_without_waiting(agent: Agent) -> None:
    assert agent.ask(wire.NatStatusRequest()) == wire.NatStatus()
    agent.setup_global(nat=wire.NatConfig())
    agent.ok(wire.NatTick())
    assert agent.ask(wire.NatStatusRequest()) == wire.NatStatus()  # off
    agent.setup_global(nat=wire.NatConfig(enabled=True))
    agent.ok(wire.AddPeer(A_KEY, "203.0.113.7:51420", "10.200.0.32/28", 25))
    began, before = time.monotonic(), int(time.time())
    agent.ok(wire.NatTick())
    assert time.monotonic() - began < 10
    # A peer is listed only where a probe has proved its path: neither before the search has begun nor after.
    for _ in range(40):
        heard = agent.ask(wire.NatStatusRequest())
        assert isinstance(heard, wire.NatStatus)
        assert heard.peers == ()
        time.sleep(0.05)
    assert before <= heard.last_refresh <= time.time()


def test_secrets_are_roots_alone(agent: Agent, here: Node) -> None:
    agent.setup_global()
    agent.setup("db", "dedicated")
    agent.ask(guest())
    for path in here.directory.rglob("*"):
        if path.is_file() and path.name not in ("log", "overlayd.yaml"):
            assert path.stat().st_mode & 0o077 == 0, path


# --- the log ------------------------------------------------------------------------------------------------------


def test_every_call_by_either_socket_writes_one_line(agent: Agent, here: Node) -> None:
    agent.setup("web")
    one, two = here.process(), here.process()
    address = agent.attach(one)
    agent.detach(one)
    refused = agent.error(wire.AttachContainer(wire.LinuxPid(two), "other", False))
    added = here.plugin("ADD", "web", two)["ips"][0]["address"].partition("/")[0]
    assert here.plugin("ADD", "web", two)["code"] == 101
    assert here.plugin("CHECK", "web", two)["code"] == 7  # without a prevResult
    assert here.plugin("DEL", "web", two) == {}
    of_agents = f"attachment={one}/eth0 network=@overlayd service=web addresses={address} code=0 ms="
    of_plugins = f"attachment=c{two}/eth0 network=net service=web"
    lines = [line.partition("call_log: ")[::2] for line in here.log.read_text().splitlines() if "call_log: " in line]
    expected = [
        ("INFO", f"verb=ADD socket=overlay {of_agents}"),
        ("INFO", f"verb=DEL socket=overlay {of_agents}"),
        ("WARNING", f"verb=ADD socket=overlay attachment={two}/eth0 network=@overlayd service=other code=7 ms="),
        ("INFO", f"verb=ADD socket=cni {of_plugins} addresses={added} code=0 ms="),
        ("WARNING", f"verb=ADD socket=cni {of_plugins} code=101 ms="),
        ("WARNING", f"verb=CHECK socket=cni attachment=c{two}/eth0 code=7 ms="),
        ("INFO", f"verb=DEL socket=cni {of_plugins} addresses={added} code=0 ms="),
    ]
    assert len(lines) == len(expected), lines
    for (head, text), (level, start) in zip(lines, expected, strict=True):
        assert f" {level} " in head, text
        assert text.startswith(start), text
    assert f'msg="{refused}"' in lines[2][1]
