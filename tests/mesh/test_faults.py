"""What goes wrong between nodes, one by one: the effect on traffic, how long it lasts, and that it ends by itself."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cni.daemon import settings as settings_module
from cni.daemon.cluster.etcd_client import EtcdClient

from .capture import Capture
from .etcds import GRACE, LEASE, PROGRAM, Clustered
from .fleet import Container, Node, inside, seconds_until, wait_for

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(PROGRAM is None, reason="no etcd here (apt-get install etcd-server)"),
]
Measured = Callable[[str], None]
UNDISTURBED = 3.0  # seconds without an answer that a machine with much else to do may take; the true gap is printed


class Stream:
    """Datagrams from one container to another and back, every 10 ms; `gap` is the longest time without an answer."""

    def __init__(self, one: Container, two: Container) -> None:
        self._ear, self._mouth = two.socket(socket.SOCK_DGRAM), one.socket(socket.SOCK_DGRAM)
        self._ear.bind((two.address, 0))
        self._mouth.connect((two.address, self._ear.getsockname()[1]))
        self._mouth.settimeout(0.01)
        self._end = threading.Event()
        self.last = time.monotonic()
        self.gap = 0.0
        self.heard = 0
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._echo, self._ask)]
        for thread in self._threads:
            thread.start()

    def _echo(self) -> None:
        while not self._end.is_set():
            with contextlib.suppress(OSError):
                data, sender = self._ear.recvfrom(64)
                self._ear.sendto(data, sender)

    def _ask(self) -> None:
        while not self._end.is_set():
            try:
                self._mouth.send(b"?")
                self._mouth.recv(64)
            except OSError:
                self._end.wait(0.01)
                continue
            now = time.monotonic()
            self.gap, self.last = max(self.gap, now - self.last), now
            self.heard += 1
            self._end.wait(0.01)

    def resumes(self, seconds: float = 40.0) -> float:
        """Seconds until answers come again."""
        before = self.heard
        return seconds_until(lambda: self.heard > before + 3, "traffic again", seconds)

    def silence(self) -> float:
        """Seconds since the last answer, or the longest gap before."""
        return max(self.gap, time.monotonic() - self.last)

    def close(self) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(6)
        self._ear.close()
        self._mouth.close()


@pytest.fixture(scope="module")
def trio() -> Iterator[Clustered]:
    made = Clustered("f")
    try:
        for number in (1, 2, 3):
            made.member(number)
        for node in made.nodes.values():
            wait_for(lambda node=node: node.status().peer_count == 2, "two peers")  # type: ignore[misc]
        yield made
    finally:
        made.clean()


@pytest.fixture(scope="module")
def capture(trio: Clustered) -> Iterator[Capture]:
    """The underlay, recorded for as long as the faults happen."""
    with Capture(f"/run/netns/{trio.underlay}") as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_unencrypted(capture: Capture) -> Iterator[None]:
    """Whatever fault: on the underlay there is WireGuard and the store, and nothing else."""
    before = capture.expected
    yield
    assert capture.strange() == {}
    assert capture.expected > before


@pytest.fixture(scope="module")
def pods(trio: Clustered) -> list[Container]:
    """One container on each node, of one isolation network."""
    made = [node.container("web", isolationNetwork="red") for node in trio.nodes.values()]
    for two in made[1:]:
        wait_for(lambda two=two: made[0].pings(two.address), "the way")  # type: ignore[misc]
    return made


@pytest.fixture
def stream(pods: list[Container]) -> Iterator[Stream]:
    """Traffic between the first two nodes while the fault happens."""
    made = Stream(pods[0], pods[1])
    wait_for(lambda: made.heard > 3, "traffic", 40)
    made.gap = 0.0
    yield made
    made.close()


def key_of(node: Node) -> str:
    return str(node.status().public_key)


def test_the_daemon_is_killed(trio: Clustered, stream: Stream, measured: Measured) -> None:
    one = trio.nodes[1]
    engine = one.engine()
    one.end(signal.SIGKILL)
    time.sleep(1)
    back = one.start()
    time.sleep(0.5)
    assert one.engine() == engine, "the engine was adopted"
    assert stream.silence() < UNDISTURBED
    measured(
        f"daemon killed (SIGKILL): longest gap in traffic {stream.gap * 1000:.0f} ms; serves again after {back:.1f} s"
    )


def test_the_daemon_ends_and_begins_while_etcd_is_down(
    trio: Clustered, stream: Stream, pods: list[Container], measured: Measured
) -> None:
    one = trio.nodes[1]
    trio.etcd.end(signal.SIGKILL)
    one.end()
    one.start()
    fresh = one.container("web", isolationNetwork="red")  # in a service that is there
    wait_for(lambda: any("etcd" in words for words in one.tool("status")["problems"]), "the problem is told")
    assert one.status().peer_count == 2
    assert fresh.pings(pods[0].address)
    other = one.container("new-service")  # in one that is not: from what is held in advance
    assert other.address
    assert stream.silence() < UNDISTURBED
    trio.etcd.start()
    took = seconds_until(lambda: not one.tool("status")["problems"], "all is well")
    wait_for(lambda: fresh.pings(pods[1].address), "the new member is known to the others")
    flat = trio.nodes[2].container("new-service")
    wait_for(lambda: flat.pings(other.address), "the new subnet is known to the others")
    assert flat.address != other.address
    measured(
        f"etcd killed, daemon restarted meanwhile: gap {stream.gap * 1000:.0f} ms, ADD to old and new services works; "
        f"etcd back: converged after {took:.1f} s"
    )
    for container in (fresh, other, flat):
        container.node.remove(container)


def test_etcd_loses_everything(trio: Clustered, stream: Stream, measured: Measured) -> None:
    """Its data directory is gone: the nodes say again what they are, and keep what they have."""
    before = [node.status() for node in trio.nodes.values()]
    trio.etcd.end(signal.SIGKILL)
    trio.etcd.forget()
    trio.etcd.start()
    took = seconds_until(
        lambda: all(not node.tool("status")["problems"] for node in trio.nodes.values()), "all is well", 40
    )
    time.sleep(GRACE + 1)
    after = [node.status() for node in trio.nodes.values()]
    assert [(s.node_ip, s.peer_count) for s in after] == [(s.node_ip, s.peer_count) for s in before]
    assert stream.silence() < UNDISTURBED
    measured(
        f"etcd's data lost: gap {stream.gap * 1000:.0f} ms, everything claimed and published again after {took:.1f} s"
    )


def test_history_is_compacted_while_a_node_is_away(
    trio: Clustered, stream: Stream, pods: list[Container], measured: Measured
) -> None:
    three = trio.nodes[3]
    three.cut()
    late = trio.nodes[1].container("web", isolationNetwork="red")

    def compact() -> None:
        client = EtcdClient(settings_module.Etcd(endpoints=(trio.etcd.url,)))
        _, revision = client.read("/zlayer-cni/")
        client._call("/v3/kv/compaction", {"revision": str(revision), "physical": True})

    inside(f"/run/netns/{trio.underlay}", compact)
    time.sleep(1)
    three.cut(healed=True)
    took = seconds_until(lambda: pods[2].pings(late.address, wait=0.1), "what it missed", 60)
    measured(f"node cut off while etcd was compacted: knows what it missed {took:.1f} s after it was healed")
    trio.nodes[1].remove(late)


def test_the_engine_is_killed(trio: Clustered, stream: Stream, measured: Measured) -> None:
    engine = trio.nodes[1].engine()
    if not engine:
        pytest.skip("the kernel's cannot be killed")
    os.kill(engine, signal.SIGKILL)
    wait_for(lambda: trio.nodes[1].engine() not in (0, engine), "another engine")
    stream.resumes()
    assert 0.01 < stream.gap < 10
    measured(f"engine killed (SIGKILL): traffic is back after {stream.gap:.2f} s")


def test_an_engine_that_hangs_is_replaced(trio: Clustered, stream: Stream, measured: Measured) -> None:
    one, engine = trio.nodes[1], trio.nodes[1].engine()
    if not engine:
        pytest.skip("the kernel's cannot be stopped")
    os.kill(engine, signal.SIGSTOP)
    try:
        wait_for(lambda: any("does not answer" in words for words in one.tool("status")["problems"]), "it is told", 60)
        again = one.container("web", isolationNetwork="red")
        one.remove(again)
        wait_for(lambda: one.engine() not in (0, engine), "another engine", 120)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(engine, signal.SIGCONT)
    stream.resumes()
    wait_for(lambda: one.tool("status")["problems"] == [], "all is well")
    measured(f"engine hangs (SIGSTOP): another in its place, traffic is back after {stream.gap:.0f} s")


def test_the_underlay_is_cut_and_healed(trio: Clustered, stream: Stream, measured: Measured) -> None:
    one = trio.nodes[1]
    one.cut()
    time.sleep(2)
    assert time.monotonic() - stream.last > 1
    one.cut(healed=True)
    took = stream.resumes()
    assert one.status().peer_count == 2
    measured(f"underlay cut for 2 s: traffic is back {took:.2f} s after it was healed, no tunnel was taken down")


def test_two_of_three_cannot_see_each_other(
    trio: Clustered, stream: Stream, pods: list[Container], measured: Measured
) -> None:
    """Only those two are apart; both still see etcd and the third, so no peer is removed."""
    one, two = trio.nodes[1], trio.nodes[2]
    trio.part(one, two)
    time.sleep(LEASE + GRACE)
    assert time.monotonic() - stream.last > 1
    assert pods[0].pings(pods[2].address)
    assert pods[1].pings(pods[2].address)
    assert [node.status().peer_count for node in trio.nodes.values()] == [2, 2, 2]
    trio.heal()
    took = stream.resumes()
    measured(f"partition between two of three for {LEASE + GRACE} s: the third reaches both; healed after {took:.2f} s")


def test_the_key_is_rotated(trio: Clustered, stream: Stream, measured: Measured) -> None:
    one, two = trio.nodes[1], trio.nodes[2]
    before = key_of(one)
    after = one.tool("peer", "rotate")["public_key"]
    assert after not in ("", before)
    assert key_of(one) == after
    wait_for(lambda: after in two.wg("show", two.device, "peers").split(), "the others know")
    assert before not in two.wg("show", two.device, "peers").split()
    stream.resumes()
    assert stream.gap < 20
    measured(f"key rotated: traffic is back after {stream.gap:.2f} s")


def test_a_node_dies_and_returns_as_itself(trio: Clustered, pods: list[Container], measured: Measured) -> None:
    three, one = trio.nodes[3], trio.nodes[1]
    before = three.status()
    engine = three.engine()
    three.cut()
    three.end(signal.SIGKILL)
    if engine:
        os.kill(engine, signal.SIGKILL)
    gone = seconds_until(lambda: one.status().peer_count == 1, "its peer is pruned", 40)
    assert gone > GRACE
    three.cut(healed=True)
    back = three.start()
    took = back + seconds_until(lambda: pods[0].pings(pods[2].address), "it is back", 40)
    after = three.status()
    assert (after.node_ip, after.public_key, after.slice_cidr) == (before.node_ip, before.public_key, before.slice_cidr)
    measured(
        f"node dead (lease {LEASE} s, grace {GRACE} s): its peers are pruned after {gone:.1f} s; "
        f"returned with its identity: reached {took:.1f} s after its start"
    )


def test_a_copy_of_a_node_does_not_get_in(trio: Clustered, stream: Stream, measured: Measured) -> None:
    """A data directory that was copied to another machine: same identity, same key. The first one stays."""
    two = trio.nodes[2]
    copy = trio.member(4, start=False)
    (copy.directory / "data").mkdir()
    (copy.directory / "data/identity.json").write_bytes((two.directory / "data/identity.json").read_bytes())
    copy.start()
    wait_for(lambda: any("speaks as this node" in words for words in copy.tool("status")["problems"]), "it is told")
    time.sleep(LEASE + 2)
    assert not trio.nodes[2].tool("status")["problems"]
    assert stream.silence() < UNDISTURBED
    measured(f"a copied identity: refused and told by the copy; gap for the true node {stream.gap * 1000:.0f} ms")


def held(trio: Clustered) -> set[str]:
    """The ids and slots that are taken in etcd."""

    def read() -> set[str]:
        client = EtcdClient(settings_module.Etcd(endpoints=(trio.etcd.url,)))
        return {item.key for item in client.read("/zlayer-cni/")[0] if "/id/" in item.key or "/slot/" in item.key}

    return inside(f"/run/netns/{trio.underlay}", read)


def test_a_stolen_key_is_nobodys_peer(trio: Clustered, stream: Stream, measured: Measured) -> None:
    """Another identity with the same WireGuard key."""
    import msgspec

    from cni.daemon.state.identity import IdentityFile

    two = trio.nodes[2]
    thief = trio.member(5, start=False)
    (thief.directory / "data").mkdir()
    known = msgspec.json.decode((two.directory / "data/identity.json").read_bytes(), type=IdentityFile)
    (thief.directory / "data/identity.json").write_bytes(msgspec.json.encode(IdentityFile(node=known.node)))
    before = held(trio)
    thief.start()
    wait_for(lambda: any("WireGuard key" in words for words in thief.tool("status")["problems"]), "it is told")
    time.sleep(3)  # it goes on trying
    assert held(trio) == before, "it takes no id and no slot from those who are members"
    assert stream.silence() < UNDISTURBED
    assert trio.nodes[1].status().peer_count == 2
    measured("a key that another node has: refused and told; traffic undisturbed")


def test_a_node_that_is_gone_for_good_is_forgotten(trio: Clustered, measured: Measured) -> None:
    """By an operator's word, on any node: not while it is heard of; and if it returns after all it takes others."""
    one, late = trio.nodes[1], trio.member(6)
    kept = late.container("late")
    wait_for(lambda: late.tool("status")["problems"] == [], "all is claimed")
    number, key = late.tool("status")["node"]["node_id"], key_of(late)
    wait_for(lambda: key in one.wg("show", one.device, "peers").split(), "it is a peer")
    assert number not in gone_ids(one)
    assert one.cli("peer", "forget", str(number), *there(one)).returncode == 1, "it is heard of"
    engine = late.engine()
    late.cut()
    late.end(signal.SIGKILL)
    if engine:
        os.kill(engine, signal.SIGKILL)
    wait_for(lambda: number in gone_ids(one), "its lease's end", 40)
    gone = gone_ids(one)[number]
    assert gone["holds"] >= 5, "an id, a key, a slice, a subnet, and what is held in advance"
    assert str(number) in one.cli("peer", "gone", *there(one)).stdout
    assert one.cli("peer", "forget", "999", *there(one)).returncode == 1
    assert one.tool("peer", "forget", str(number))["identity"] == gone["identity"]
    assert number not in gone_ids(one)
    assert one.cli("peer", "forget", str(number), *there(one)).returncode == 1, "once is enough"
    heir = trio.member(7)
    wait_for(lambda: heir.tool("status")["node"]["node_id"] == number, "its id is free")
    late.cut(healed=True)
    late.start()
    # Until etcd has been read it goes by what it was.
    wait_for(lambda: late.tool("status")["node"]["node_id"] not in (0, number), "another id", 60)
    wait_for(lambda: late.tool("status")["problems"] == [], "it is a member again", 60)
    found = one.container("late")
    wait_for(lambda: found.pings(kept.address), "its container, where it was", 60)
    measured("a node forgotten and its id taken by another: it returned as a third, with its subnet")


def test_a_node_that_was_forgotten_too_early_takes_nothing_from_its_heir(trio: Clustered, measured: Measured) -> None:
    """It was only stopped, and its id and the subnet of its service are another's when it goes on."""
    one, late = trio.nodes[1], trio.member(8)
    kept, asker = late.container("early"), one.container("asker")
    wait_for(lambda: late.tool("status")["problems"] == [], "all is claimed")
    number = late.tool("status")["node"]["node_id"]
    assert late.daemon is not None
    late.daemon.send_signal(signal.SIGSTOP)
    try:
        wait_for(lambda: number in gone_ids(one), "its lease's end", 40)
        one.tool("peer", "forget", str(number))
        heir = trio.member(9)
        wait_for(lambda: heir.tool("status")["node"]["node_id"] == number, "its id is free")
        theirs = heir.container("early")
        assert theirs.address == kept.address, "the rule leads the heir to the same subnet"
    finally:
        late.daemon.send_signal(signal.SIGCONT)
    wait_for(lambda: any("service early" in words for words in late.tool("status")["problems"]), "it is told", 40)
    fresh = late.container("early")
    assert fresh.address != theirs.address
    wait_for(lambda: asker.pings(fresh.address), "a new container of the node", 40)
    wait_for(lambda: asker.pings(theirs.address), "the heir's", 40)
    late.remove(kept)
    wait_for(lambda: late.tool("status")["problems"] == [], "nothing of the heir's is left", 60)
    wait_for(lambda: fresh.pings(theirs.address), "the heir's container from the node", 40)
    measured("a node forgotten while it was stopped: it gives up what its heir has, new containers are reached")


def gone_ids(node: Node) -> dict[int, dict[str, Any]]:
    return {each["node_id"]: each for each in node.tool("peer", "gone")}


def there(node: Node) -> tuple[str, str]:
    return ("--run-dir", str(node.directory / "run"))
