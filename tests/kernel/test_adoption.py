"""Records and kernel, kept in agreement: by a new daemon at its start, and by a running one when another program
interferes.

A machine of its own with real containers (tests/chaos/machine.py), the program from source; the keeper looks every
two seconds, and right after what it hears of.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.blackbox import snapshot
from tests.chaos import scenes
from tests.chaos.judge import Live
from tests.chaos.machine import Machine, Space, machine
from tests.chaos.scenes import attached

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

DUAL = "address_cooldown: 1\ncluster_cidr6: fd00:200::/48"
AT_ONCE = 60.0  # seconds until what netlink tells of is mended, on a busy machine
NEXT_LOOK = 60.0  # seconds until what only a look finds is mended, there


def in_order(on: Machine, *who: Live, within: float = NEXT_LOOK) -> None:
    """Soon records and kernel agree that exactly these are attached."""
    scenes.in_order(on, *who, within=within)


def ready(on: Machine) -> None:
    """A daemon runs and STATUS says so; on a busy machine one that starts it may be answered too late."""
    end = time.monotonic() + NEXT_LOOK
    while (said := on.call("STATUS", on.conf())).rc and time.monotonic() < end:
        said.failed(50)
    said.ok()


class Node:
    """A machine with a daemon and two containers that can reach each other, on one bridge and over two."""

    def __init__(self, on: Machine) -> None:
        self.on = on
        self.pid = on.start_daemon()
        (self.a, self.inside), (self.b, _), (self.c, _) = (
            attached(on, "a", isolationNetwork="blue"),
            attached(on, "b", isolationNetwork="blue"),
            attached(on, "c", service="db", isolationNetwork="blue"),
        )
        self.bridge, self.other_bridge = (str(self.record(who)["bridge"]) for who in "ac")
        self.all = (self.a, self.b, self.c)
        assert self.whole()

    def record(self, cid: str) -> dict[str, object]:
        found: dict[str, object] = next(each for each in self.on.ask("attachments") if each["container_id"] == cid)
        return found

    def reaches(self, whom: Live) -> bool:
        target = whom.addresses[0].partition("/")[0]
        line = f"ping -n -q -c 3 -i 0.3 -w 2 {target} >/dev/null && echo yes || echo no"
        return self.inside.sh(line).strip() == "yes"

    def whole(self) -> bool:
        """Whether `a` reaches its neighbour, and the other bridge's container."""
        return self.reaches(self.b) and self.reaches(self.c)

    def mended(self, within: float) -> None:
        """Soon all is as it was, without a new daemon, and every CHECK agrees."""
        end = time.monotonic() + within
        while not self.whole():
            assert time.monotonic() < end, f"not mended\n{self.on.log_tail()}"
            time.sleep(0.2)
        in_order(self.on, *self.all, within=max(10.0, end - time.monotonic()))
        assert self.on.daemon() == self.pid
        ready(self.on)
        attached(self.on, "new")
        self.on.call("DEL", self.on.conf(), "new", "").ok()


@pytest.fixture
def on() -> Iterator[Machine]:
    with machine("source", DUAL) as made:
        made.program.tune(cni__daemon__reconcile__node__INTERVAL=2.0)
        yield made


@pytest.fixture
def node(on: Machine) -> Node:
    return Node(on)


# --- a new daemon -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_new_daemon_touches_nothing_that_is_right(node: Node, number: int) -> None:
    def view() -> snapshot.Snapshot:
        found = node.on.inside(snapshot._inside_view)  # with every index and MAC: nothing was made anew
        return {name: part for name, part in found.items() if name != "neighbours"}

    end = time.monotonic() + NEXT_LOOK
    while "tentative" in node.on.sh("ip -6 addr") and time.monotonic() < end:
        time.sleep(0.1)  # the kernel is still finding out about the bridges' link-local addresses
    before = view()
    node.on.signal_daemon(number)
    assert node.whole(), "containers go on without a daemon"
    node.on.start_daemon()
    assert snapshot.diff(before, view()) == []
    in_order(node.on, *node.all)


def test_a_new_daemon_mends_both_ways(node: Node) -> None:
    """Meanwhile: a port off its bridge, a bridge gone, a rule's element gone and one too many, a container gone."""
    on = node.on
    on.signal_daemon(signal.SIGKILL)
    on.sh(
        f"ip link del {node.other_bridge}",
        f"ip link set {node.a.host_end} nomaster down",
        "nft flush set bridge $(nft list tables bridge | head -1 | cut -d' ' -f3) macs",
    )
    on.start_daemon()
    end = time.monotonic() + NEXT_LOOK
    while not node.whole():
        assert time.monotonic() < end, on.log_tail()
        time.sleep(0.2)
    in_order(on, *node.all, within=NEXT_LOOK)


def test_a_link_of_ours_that_no_record_knows_goes_and_others_stay(node: Node) -> None:
    on = node.on
    on.signal_daemon(signal.SIGKILL)
    on.sh("ip link add zl-0123456789-v type veth peer name foreign0", "ip link add br0 type bridge")
    on.start_daemon()
    assert "zl-0123456789-v" in on.sh("ip -o link"), "the name is ours, the MAC is not: whose is it?"
    on.sh("ip link del zl-0123456789-v")
    assert "br0" in on.sh("ip -o link")
    in_order(on, *node.all)


def test_two_daemons_never_run_on_one_run_directory(node: Node) -> None:
    on = node.on
    words = [*on.program.daemon, "overlayd", "--run-dir", str(on.run_dir), "--data-dir", str(on.data_dir)]
    said = on.sh(f"PYTHONPATH={on.program.env['PYTHONPATH']} {' '.join(words)} 2>&1 || echo code $?")
    assert "another overlay daemon runs on" in said and said.strip().endswith("code 1")
    in_order(node.on, *node.all)


def test_a_daemon_that_may_takes_another_ones_place(node: Node) -> None:
    """As the systemd unit's does with one that a plugin started."""
    on = node.on
    words = [*on.program.daemon, "overlayd", "--run-dir", str(on.run_dir), "--data-dir", str(on.data_dir)]
    start = f"PYTHONPATH={on.program.env['PYTHONPATH']} setsid {' '.join(words)} --take-over"
    on.sh(f"{start} </dev/null >>{on.run_dir}/overlayd.log 2>&1 &")
    end = time.monotonic() + NEXT_LOOK
    while on.daemon() in (0, node.pid):
        assert time.monotonic() < end, on.log_tail()
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{node.pid}/exe"), "the one before has ended"
    ready(on)
    in_order(on, *node.all)


# --- another program interferes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "within"),
    [
        ("ip link del {bridge}", AT_ONCE),
        ("ip link del {other_bridge}", AT_ONCE),
        ("ip addr flush dev {bridge}", AT_ONCE),
        ("ip link set {bridge} down", NEXT_LOOK),
        ("ip link set {port} nomaster", NEXT_LOOK),
        ("ip link set {port} down", NEXT_LOOK),
        ("nft list tables | grep -v 'ip6* ' | while read table; do nft delete $table; done", NEXT_LOOK),
        ("sysctl -qw net.ipv4.ip_forward=0", NEXT_LOOK),
        ("ip addr del $(ip -o -4 addr show dev lo | grep -o '10.200[^ ]*') dev lo", AT_ONCE),
    ],
    ids=[
        "a bridge deleted", "the other bridge deleted", "the gateway's addresses deleted", "a bridge down",
        "a port off its bridge", "a port down", "our tables deleted",
        "forwarding switched off", "the node's own address deleted",
    ],
)  # fmt: skip
def test_what_somebody_took_away_comes_back(node: Node, what: str, within: float) -> None:
    """In the machine's own namespace, which has no rules of other programs."""
    before = addresses(node.on)
    node.on.sh(what.format(bridge=node.bridge, other_bridge=node.other_bridge, port=node.a.host_end))
    node.mended(within)
    end = time.monotonic() + within
    while addresses(node.on) != before and time.monotonic() < end:
        time.sleep(0.1)
    assert addresses(node.on) == before


def addresses(on: Machine) -> set[tuple[str, str]]:
    """(link, address) of everything that is no link's own."""
    found = [(link["ifname"], info) for link in on.ip("addr") for info in link["addr_info"]]
    return {(name, f"{info['local']}/{info['prefixlen']}") for name, info in found if info["scope"] != "link"}


def test_a_deleted_veth_is_a_dead_container(node: Node) -> None:
    """It cannot be repaired from outside; it is released, and its runtime's DEL succeeds."""
    node.on.sh(f"ip link del {node.b.host_end}")
    in_order(node.on, node.a, node.c, within=NEXT_LOOK)
    node.on.call("DEL", node.on.conf(), "b", node.b.path).ok()


def test_a_renamed_port_gets_its_name_back(node: Node) -> None:
    """The fence admits it under no other; it is the port whose MAC it has, whatever it is called."""
    for _ in range(2):
        rename(node, "renamed0")
        end = time.monotonic() + NEXT_LOOK
        while not node.reaches(node.b):
            assert time.monotonic() < end, node.on.log_tail()
        assert "renamed0" not in {link["ifname"] for link in node.on.ip("link")}
        in_order(node.on, *node.all)


def test_a_renamed_port_goes_with_its_attachment(node: Node) -> None:
    """DEL takes the pair away under whatever name, before its address is anybody else's."""
    rename(node, "renamed0")
    node.on.call("DEL", node.on.conf(), "b", node.b.path).ok()
    assert "renamed0" not in {link["ifname"] for link in node.on.ip("link")}
    in_order(node.on, node.a, node.c)


def rename(node: Node, name: str) -> None:
    end = node.b.host_end
    node.on.sh(f"ip link set {end} down; ip link set {end} name {name}; ip link set {name} up || true")


def test_a_changed_container_is_told_by_check(node: Node) -> None:
    """Route, address and link inside belong to the container: CHECK tells, and nothing is done to it."""
    on, space = node.on, Space(node.on)
    result = on.call("ADD", on.conf(), "d", space.path).ok()
    conf = on.conf(prevResult=result)
    on.call("CHECK", conf, "d", space.path).ok()
    space.sh("ip route del default")
    on.call("CHECK", conf, "d", space.path).failed(102, says=["route"])
    space.sh("ip addr flush dev eth0")
    on.call("CHECK", conf, "d", space.path).failed(102, says=["address"])
    on.call("DEL", on.conf(), "d", space.path).ok()
    in_order(on, *node.all)


# --- the disk -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(on: Machine, size: str = "1m") -> Iterator[None]:
    """The run directory on a small file system of its own. It is to be seen on the machine alone."""
    on.sh(f"mount -t tmpfs -o size={size} none {on.run_dir}")
    try:
        yield
    finally:
        on.end_processes(signal.SIGTERM)
        on.sh(f"umount -l {on.run_dir}", check=False)


@pytest.mark.timeout(600)
def test_a_full_disk(on: Machine) -> None:
    """ADD says so and leaves nothing; DEL succeeds; what runs goes on; with room again all is as ever."""
    with small_disk(on):
        ready(on)
        space = Space(on)
        result = on.call("ADD", on.conf(), "a", space.path).ok()
        on.sh(f"dd if=/dev/zero of={on.run_dir}/ballast bs=4k 2>/dev/null || true")
        other = Space(on)
        codes = [on.call("ADD", on.conf(), f"b{n}", other.path, f"eth{n}").rc for n in range(12)]
        assert codes[-1] != 0, "the disk is not full"
        on.call("ADD", on.conf(), "b", other.path, "last").failed(5)
        on.call("STATUS", on.conf()).failed(50)
        assert "last" not in other.sh("ip -o link")
        for n in range(12):
            on.call("DEL", on.conf(), f"b{n}", other.path, f"eth{n}").ok()
        gateway = result["ips"][0]["gateway"]
        assert "1 received" in space.sh(f"ping -n -q -c 1 -W 2 {gateway}")
        on.sh(f"rm {on.run_dir}/ballast")
        on.call("ADD", on.conf(), "c", other.path, "eth20").ok()
        on.call("DEL", on.conf(), "c", other.path, "eth20").ok()
        on.call("DEL", on.conf(), "a", space.path).ok()
        end = time.monotonic() + NEXT_LOOK
        while on.sh("ip -o link | grep -c -- '-v@' || true").strip() != "0" or tidy(on):
            assert time.monotonic() < end, (on.sh("ip -o link"), tidy(on))
            time.sleep(0.2)


def tidy(on: Machine) -> list[str]:
    """Half-written files in the run directory, as seen on the machine."""
    return on.sh(f"find {on.run_dir} -name '*.tmp' -o -name '*.new'").split()


@pytest.mark.timeout(600)
def test_a_full_disk_and_no_daemon(on: Machine) -> None:
    """The link goes, DEL succeeds, no temporary file stays; the next daemon releases the address."""
    with small_disk(on):
        ready(on)
        space = Space(on)
        on.call("ADD", on.conf(), "a", space.path).ok()
        on.end_processes(signal.SIGKILL)
        on.sh(f"dd if=/dev/zero of={on.run_dir}/ballast bs=4k 2>/dev/null || true")
        said = on.call("DEL", on.conf(autostart=False), "a", space.path)
        said.ok()
        assert space.sh("ip -o link show eth0 2>/dev/null || echo gone").strip() == "gone"
        assert tidy(on) == []
        on.sh(f"rm {on.run_dir}/ballast")
        ready(on)
        end = time.monotonic() + NEXT_LOOK
        words = " ".join([*on.program.daemon, "attachments", "--json", "--run-dir", str(on.run_dir)])
        while '"a"' in on.sh(f"PYTHONPATH={on.program.env['PYTHONPATH']} {words}"):
            assert time.monotonic() < end
            time.sleep(0.3)


@pytest.mark.timeout(600)
def test_a_read_only_run_directory(on: Machine) -> None:
    """No daemon can begin there: each verb says so in its own way, the link goes, and what runs goes on."""
    with small_disk(on, "8m"):
        ready(on)
        space, other = Space(on), Space(on)
        result = on.call("ADD", on.conf(), "a", space.path).ok()
        steady = Space(on)
        on.call("ADD", on.conf(), "steady", steady.path).ok()
        on.end_processes(signal.SIGKILL)
        on.sh(f"mount -o remount,ro {on.run_dir}")
        on.call("STATUS", on.conf()).failed(50)
        on.call("ADD", on.conf(), "b", other.path).failed(11)
        on.call("CHECK", on.conf(prevResult=result), "a", space.path).failed(11)
        on.call("DEL", on.conf(), "a", space.path).ok()
        assert space.sh("ip -o link show eth0 2>/dev/null || echo gone").strip() == "gone"
        assert "1 received" in steady.sh(f"ping -n -q -c 1 -W 2 {result['ips'][0]['gateway']}")
        on.sh(f"mount -o remount,rw {on.run_dir}")
        on.call("ADD", on.conf(), "b", other.path).ok()
        for cid in ("b", "steady"):
            on.call("DEL", on.conf(), cid, "").ok()
