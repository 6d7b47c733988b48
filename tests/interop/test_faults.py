"""Upstream's faults, shown on the real daemon, each with its number in the contract; and ours does not have them.

A fault is expected: a version of upstream's that no longer has it fails here, which is how we get to know. What is not
here because it does not happen every time: with the global overlay up, SIGTERM did not end the daemon in five of eight
tries (its device hangs in the teardown); `shutdown` always did.
"""

from __future__ import annotations

import contextlib
import signal
import socket as sockets
import subprocess
from collections.abc import Callable

import pytest

from cni.overlay import wire
from cni.overlay.client import Deadline, Dialing, dial
from cni.overlay.errors import DeadlinePassed, OverlaydError, Refused
from cni.overlay.framing import frame
from tests.interop.daemons import Daemon, Ours, Upstream
from tests.interop.machine import wait_until
from tests.interop.scenario import KEYS

Make = Callable[[type[Daemon]], Daemon]
BOTH = pytest.mark.parametrize("kind", [Upstream, Ours], ids=lambda kind: kind.name)


def raw(daemon: Daemon, request: wire.AnyRequest, seconds: float = 3.0) -> wire.AnyReply:
    """One request as it is, on a connection of its own."""
    deadline = Deadline(seconds)
    client = dial(daemon.socket, deadline, Dialing(attempts=1))
    try:
        return client.round_trip(request, deadline)
    finally:
        client.close()


def add_peer(cidrs: str, port: int = 51420) -> wire.AnyRequest:
    """A peer as ZLayer's own client would send it."""
    return wire.AddPeer(
        public_key=KEYS["alpha"],
        endpoint=f"203.0.113.7:{port}",
        allowed_ips=cidrs,
        persistent_keepalive_secs=25,
    )


def reaches(daemon: Daemon, pid: int, address: str) -> bool:
    ping = ["nsenter", "-t", str(pid), "-n", "ping", "-c1", "-W1", "-q", address]
    return daemon.machine.run(*ping, check=False).returncode == 0


@BOTH
def test_setting_a_peer_twice_wedges_it(kind: type[Daemon], make_daemon: Make) -> None:
    """5.3/22: no call is answered any more, on no connection, and only SIGKILL ends it."""
    daemon = make_daemon(kind)
    daemon.manager().setup_global_overlay()
    raw(daemon, add_peer("10.200.0.32/28"))
    if kind is Ours:
        raw(daemon, add_peer("10.200.0.32/28", 51421))
        assert [peer.endpoint for peer in daemon.manager().status().peers] == ["203.0.113.7:51421"]
        return
    with pytest.raises(Refused, match="add_peer failed: UAPI set failed"):
        raw(daemon, add_peer("10.200.0.32/28", 51421))
    assert "panicked at" in daemon.log.read_text()
    for _ in range(2):
        with pytest.raises(DeadlinePassed):
            raw(daemon, wire.StatusRequest(), 1.0)
    daemon.signal(signal.SIGTERM)
    assert daemon.process is not None
    with pytest.raises(subprocess.TimeoutExpired):
        daemon.process.wait(timeout=2)
    daemon.kill()


@BOTH
def test_a_peer_has_one_cidr(kind: type[Daemon], make_daemon: Make) -> None:
    """5.3/23: documented as a list, refused by the device."""
    daemon = make_daemon(kind)
    daemon.manager().setup_global_overlay()
    request = add_peer("10.200.0.32/28,10.200.9.0/26")
    if kind is Ours:
        raw(daemon, request)
        assert [peer.allowed_ips for peer in daemon.manager().status().peers] == ["10.200.0.32/28,10.200.9.0/26"]
    else:
        with pytest.raises(Refused, match="errno=22"):
            raw(daemon, request)


@BOTH
def test_isolation_networks_are_open(kind: type[Daemon], make_daemon: Make) -> None:
    """5.3/1: once the global overlay is up, the fence lets everything through."""
    daemon = make_daemon(kind)
    manager = daemon.manager()
    manager.setup_global_overlay()
    where, pids = {}, {}
    for name, network in (("red", "red"), ("red-too", "red"), ("blue", "blue"), ("open", None)):
        pids[name] = daemon.machine.container()
        manager.setup_service_overlay(name)
        where[name] = manager.attach_container(pids[name], name, isolation_network=network)
    reached = {(a, b) for a in pids for b in pids if a != b and reaches(daemon, pids[a], where[b])}
    if kind is Ours:
        assert reached == {("red", "red-too"), ("red-too", "red")}
    else:
        assert reached == {(a, b) for a in pids for b in pids if a != b}


@BOTH
def test_a_living_daemons_socket_is_stolen(kind: type[Daemon], make_daemon: Make) -> None:
    """5.3/27: a second daemon starts happily, and the first is deaf from then on."""
    first = make_daemon(kind)
    first.manager().setup_service_overlay("web")
    command = [word.replace("/run", "/run2").replace("/data", "/data2") for word in first.command()]
    log = first.machine.home / "second"
    second = first.machine.start(*command, log=log, env=first.environment())
    if kind is Ours:
        wait_until(lambda: first.socket in log.read_text(), "the second daemon saying whose socket it is")
        assert first.manager().status().service_count == 1
        second.terminate()
        second.wait(timeout=20)
        assert first.manager().status().service_count == 1
    else:
        wait_until(lambda: first.manager().status().service_count == 0, "the second daemon")
        assert first.process is not None
        assert (first.process.poll(), second.poll()) == (None, None)


@BOTH
def test_addresses_begin_again_after_a_kill(kind: type[Daemon], make_daemon: Make) -> None:
    """6.14: what a living container has is given to the next."""
    daemon = make_daemon(kind)
    addresses = []
    for _ in range(2):
        manager = daemon.manager()
        manager.setup_global_overlay()
        manager.setup_service_overlay("web")
        addresses.append(manager.attach_container(daemon.machine.container(), "web"))
        daemon.kill()
        daemon.start()
    assert (addresses[0] == addresses[1]) == (kind is Upstream)


@BOTH
def test_prune_takes_what_is_anothers(kind: type[Daemon], make_daemon: Make) -> None:
    """6.13: any idle bridge whose name looks like one, of other programs too."""
    daemon = make_daemon(kind)
    daemon.machine.run("ip", "link", "add", "zl-other-b", "type", "bridge")
    pruned = daemon.manager().prune_orphan_bridges([])
    assert (pruned == ["zl-other-b"]) == (kind is Upstream)
    assert ("zl-other-b" in daemon.machine.links()) == (kind is Ours)


@BOTH
def test_a_bridge_is_adopted_without_a_look(kind: type[Daemon], make_daemon: Make) -> None:
    """5.3/28: whatever has the bridge's name is taken for it; here a veth, and then nothing can be put on it."""
    daemon = make_daemon(kind)
    manager = daemon.manager()
    manager.setup_global_overlay()
    name = manager.service_bridge_name("web")
    daemon.machine.run("ip", "link", "add", name, "type", "veth", "peer", "name", "zlt-peer")
    with contextlib.suppress(OverlaydError) if kind is Upstream else pytest.raises(Refused, match=name):
        assert manager.setup_service_overlay("web").name == name
    if kind is Upstream:
        with pytest.raises(Refused, match="enslave"):
            manager.attach_container(daemon.machine.container(), "web")


@BOTH
def test_a_number_in_place_of_an_operation_is_obeyed(kind: type[Daemon], make_daemon: Make) -> None:
    """2.1: `{"op":25}` is a shutdown, by the position of the word in a list."""
    daemon = make_daemon(kind)
    with sockets.socket(sockets.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(daemon.socket)
        sock.sendall(frame(b'{"frame":"request","id":1,"request":{"op":25}}'))
        answer = b""
        while data := sock.recv(4096):  # to the end of the connection: either daemon closes it
            answer += data
    assert daemon.process is not None
    if kind is Ours:
        assert answer == b"", "the connection is closed without an answer"
        assert daemon.manager().status().server
    else:
        assert answer[4:] == b'{"frame":"response","id":1,"response":{"result":"ok"}}'
        assert daemon.process.wait(timeout=10) == 0


@BOTH
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b'{"frame":"request","id":1,"request":{"op":"no_such"}}',
     b'{"frame":"request","id":-1,"request":{"op":"status"}}', b"\xef\xbb\xbf{}"],
)  # fmt: skip
def test_a_bad_frame_closes_its_connection_and_no_other(kind: type[Daemon], body: bytes, make_daemon: Make) -> None:
    """1.2, no fault: both do it."""
    daemon = make_daemon(kind)
    other = daemon.manager()
    other.status()
    with sockets.socket(sockets.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(daemon.socket)
        sock.sendall(frame(body))
        assert sock.recv(4096) == b""
    other.status()
