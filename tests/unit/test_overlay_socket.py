"""The overlay door on a real socket, with a handler of the test's own: frames, order, who waits for whom, and leaks."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cni.daemon.api import overlay_socket, sockets
from cni.daemon.api.overlay_socket import OverlaySocket
from cni.daemon.settings import Settings
from cni.overlay import wire
from cni.overlay.framing import LARGEST, Framer, frame
from cni.overlay.manager import OverlayManager

Handler = Callable[[wire.AnyRequest], wire.AnyReply]


class Served:
    """A door on an event loop in a thread of its own."""

    def __init__(self, path: str, handler: Handler) -> None:
        self.path = path
        self.ended = threading.Event()
        self.loop = asyncio.new_event_loop()
        self.pools = [ThreadPoolExecutor(8), ThreadPoolExecutor(1)]
        listener = sockets.listen(path, 0o660)
        self.door = OverlaySocket(
            listener, handler, *self.pools, quick_requests=(wire.StatusRequest,), end=self.ended.set
        )
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        asyncio.run_coroutine_threadsafe(self.door.open(), self.loop).result(30)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.door.close(2.0), self.loop).result(30)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(30)
        self.loop.close()
        for pool in self.pools:
            pool.shutdown(cancel_futures=True)

    def client(self) -> Client:
        return Client(self.path)

    def wait_for_clients(self, count: int) -> None:
        end = time.monotonic() + 30
        while len(self.door._clients) != count:
            assert time.monotonic() < end, f"{len(self.door._clients)} clients, not {count}"
            time.sleep(0.01)


class Client:
    """A connection that says and hears frames, whole or not."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(30)
        self.sock.connect(path)
        self.framer = Framer()

    def send(self, number: int, request: wire.AnyRequest) -> None:
        self.sock.sendall(frame(wire.encode(wire.RequestFrame(number, request))))

    def hear(self) -> wire.Frame:
        while (body := self.framer.next_frame()) is None:
            data = self.sock.recv(1 << 16)
            if not data:
                raise EOFError
            self.framer.feed(data)
        return wire.decode_frame(body)

    def ask(self, request: wire.AnyRequest, number: int = 1) -> wire.AnyReply:
        self.send(number, request)
        heard = self.hear()
        assert isinstance(heard, wire.ResponseFrame)
        assert heard.id == number
        return heard.response

    def is_closed(self) -> bool:
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.sock.close()


def echo(request: wire.AnyRequest) -> wire.AnyReply:
    """Answers a name with the name, and a wait with a wait."""
    if isinstance(request, wire.UnregisterDns):
        return wire.BridgeName(request.name)
    if isinstance(request, wire.NatTick):
        time.sleep(0.5)
    if isinstance(request, wire.PruneOrphanBridges):
        return wire.PrunedBridges(("x" * LARGEST,))
    return wire.Ok()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    door = Served(str(tmp_path / "overlayd.sock"), echo)
    yield door
    door.close()


# --- answers -----------------------------------------------------------------------------------------------------


def test_one_answer_per_request_in_order(served: Served) -> None:
    client = served.client()
    for number in range(50):
        client.send(number, wire.UnregisterDns(str(number)))
    assert [client.hear() for _ in range(50)] == [
        wire.ResponseFrame(number, wire.BridgeName(str(number))) for number in range(50)
    ]


def test_the_id_comes_back_whatever_it_is(served: Served) -> None:
    client = served.client()
    for number in (0, 7, 7, 2**64 - 1):
        assert client.ask(wire.StatusRequest(), number) == wire.Ok()


def test_bytes_may_come_one_at_a_time(served: Served) -> None:
    client = served.client()
    for byte in frame(wire.encode(wire.RequestFrame(5, wire.UnregisterDns("slow")))):
        client.sock.send(bytes([byte]))
    assert client.hear() == wire.ResponseFrame(5, wire.BridgeName("slow"))


def test_a_large_request_is_answered(served: Served) -> None:
    client = served.client()
    name = "n" * (LARGEST - 200)
    assert client.ask(wire.UnregisterDns(name)) == wire.BridgeName(name)


def test_an_answer_too_large_to_send_is_an_error(served: Served) -> None:
    client = served.client()
    answer = client.ask(wire.PruneOrphanBridges(()))
    assert isinstance(answer, wire.Err)
    assert "frame too large" in answer.message
    assert client.ask(wire.StatusRequest()) == wire.Ok()


def test_who_stops_sending_still_gets_the_answers(served: Served) -> None:
    client = served.client()
    client.send(1, wire.NatTick())
    client.send(2, wire.UnregisterDns("last"))
    client.sock.shutdown(socket.SHUT_WR)
    assert client.hear() == wire.ResponseFrame(1, wire.Ok())
    assert client.hear() == wire.ResponseFrame(2, wire.BridgeName("last"))
    assert client.is_closed()


def test_shutdown_is_answered_first(served: Served) -> None:
    client = served.client()
    assert client.ask(wire.Shutdown(), 9) == wire.Ok()
    assert served.ended.wait(30)
    assert client.is_closed()


# --- bad frames --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bytes_sent",
    [
        frame(b""),
        frame(b"{"),
        frame(b'{"frame":"request","id":1,"request":{"op":"fly"}}'),
        frame(b'{"frame":"request","id":1,"request":{"op":25}}'),
        frame(b'{"frame":"request","id":-1,"request":{"op":"status"}}'),
        frame(b'["request",1,{"op":"status"}]'),
        frame(b'\xef\xbb\xbf{"frame":"request","id":1,"request":{"op":"status"}}'),
        struct.pack("<I", LARGEST + 1),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_no_frame_closes_its_own_connection(served: Served, bytes_sent: bytes) -> None:
    bystander, client = served.client(), served.client()
    client.sock.sendall(bytes_sent)
    assert client.is_closed()
    assert bystander.ask(wire.StatusRequest()) == wire.Ok()


def test_frames_before_a_bad_one_are_answered(served: Served) -> None:
    client = served.client()
    client.sock.sendall(frame(wire.encode(wire.RequestFrame(1, wire.StatusRequest()))) + frame(b"nonsense"))
    assert client.hear() == wire.ResponseFrame(1, wire.Ok())
    assert client.is_closed()


def test_what_is_no_request_is_passed_over(served: Served) -> None:
    client = served.client()
    for other in (wire.ResponseFrame(1, wire.Ok()), wire.PeerHealthChanged("key", True)):
        client.sock.sendall(frame(wire.encode(other)))
    assert client.ask(wire.StatusRequest(), 3) == wire.Ok()


@pytest.mark.parametrize("length", [1, 3, 4, 20])
def test_hanging_up_in_the_middle_is_nobody_elses_affair(served: Served, length: int) -> None:
    client = served.client()
    client.sock.sendall(frame(wire.encode(wire.RequestFrame(1, wire.StatusRequest())))[:length])
    client.close()
    assert served.client().ask(wire.StatusRequest()) == wire.Ok()
    served.wait_for_clients(0)


# --- who waits for whom ------------------------------------------------------------------------------------------


def test_slow_work_holds_up_nobody_else(tmp_path: Path) -> None:
    together, enough = threading.Barrier(9), threading.Event()

    def work(request: wire.AnyRequest) -> wire.AnyReply:
        if isinstance(request, wire.NatTick):
            together.wait(30)  # side by side: one after the other they would never all be here
            enough.wait(60)
        return wire.Ok()

    door = Served(str(tmp_path / "overlayd.sock"), work)
    try:
        slow = [door.client() for _ in range(8)]  # as many as there are threads
        for client in slow:
            client.send(1, wire.NatTick())
        together.wait(30)
        assert door.client().ask(wire.StatusRequest()) == wire.Ok()
        enough.set()
        for client in slow:
            assert client.hear() == wire.ResponseFrame(1, wire.Ok())
    finally:
        together.abort()
        enough.set()
        door.close()


def test_half_a_frame_holds_up_nobody(served: Served) -> None:
    halves = [served.client() for _ in range(100)]
    for client in halves:
        client.sock.sendall(struct.pack("<I", LARGEST) + b"{" * 1000)
    assert served.client().ask(wire.StatusRequest()) == wire.Ok()


def test_who_stalls_in_a_frame_is_given_up(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay_socket, "STALLED", 0.3)
    idle, stalled = served.client(), served.client()
    stalled.sock.sendall(struct.pack("<I", 100) + b"{")
    assert stalled.is_closed()
    time.sleep(0.4)
    assert idle.ask(wire.StatusRequest()) == wire.Ok()  # between frames one may wait for ever


def test_who_does_not_read_holds_up_nobody_and_is_given_up(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay_socket, "STALLED", 0.3)
    deaf = served.client()
    deaf.sock.settimeout(0.2)
    request = frame(wire.encode(wire.RequestFrame(1, wire.UnregisterDns("n" * 100_000))))
    with pytest.raises((TimeoutError, BrokenPipeError, ConnectionResetError)):
        for _ in range(10_000):
            deaf.sock.sendall(request)
    assert served.client().ask(wire.StatusRequest()) == wire.Ok()
    served.wait_for_clients(0)


def test_many_idle_connections_leave_nothing_behind(served: Served) -> None:
    before = open_files()
    clients = [served.client() for _ in range(400)]
    served.wait_for_clients(400)
    clients.append(served.client())
    assert clients[-1].ask(wire.StatusRequest()) == wire.Ok()
    for client in clients:
        client.close()
    served.wait_for_clients(0)
    end = time.monotonic() + 30
    while open_files() > before:
        assert time.monotonic() < end, f"{open_files()} open files, {before} before"
        time.sleep(0.01)


# --- events ------------------------------------------------------------------------------------------------------


def test_events_go_to_every_client(served: Served) -> None:
    clients = [served.client() for _ in range(3)]
    served.wait_for_clients(3)
    event = wire.NatEndpointChanged("key", "203.0.113.9:51420")
    served.door.push(event)
    assert [client.hear() for client in clients] == [event] * 3


def test_events_for_who_does_not_read_are_dropped_and_answers_are_not(served: Served) -> None:
    deaf, listening = served.client(), served.client()
    served.wait_for_clients(2)
    event = wire.PeerHealthChanged("k" * 1000, False)
    for _ in range(3000):
        served.door.push(event)
        assert listening.hear() == event
    deaf.send(1, wire.UnregisterDns("still here"))
    heard = 0
    while deaf.hear() == event:
        heard += 1
    assert 0 < heard < 3000
    assert deaf.ask(wire.StatusRequest(), 2) == wire.Ok()


def test_events_and_answers_do_not_mix(served: Served) -> None:
    client = served.client()
    served.wait_for_clients(1)
    event = wire.PeerHealthChanged("key", True)
    for number in range(100):
        client.send(number, wire.UnregisterDns("n" * 100))
        served.door.push(event)
    heard = [client.hear() for _ in range(200)]
    assert [each.id for each in heard if isinstance(each, wire.ResponseFrame)] == list(range(100))
    assert heard.count(event) == 100


def test_our_own_client_lives_with_events_it_did_not_read(served: Served) -> None:
    """It reads only while it waits: what came meanwhile is before the answer, as far as the daemon kept it."""
    heard: list[wire.AnyEvent] = []
    manager = OverlayManager("p", "i", socket=served.path, on_event=heard.append)
    event = wire.PeerHealthChanged("k" * 1000, False)
    manager.unregister_dns("dialled")
    served.wait_for_clients(1)
    for calls in (1, 2):
        before = len(heard)
        for _ in range(3000):
            served.door.push(event)
        drained = threading.Event()
        served.loop.call_soon_threadsafe(drained.set)
        assert drained.wait(30)
        manager.detach_container(7)  # our echo says ok
        assert 0 < len(heard) - before < 3000, f"call {calls}"
    assert set(heard) == {event}
    assert len(served.door._clients) == 1, "on the first connection"
    manager.close()


# --- the end -----------------------------------------------------------------------------------------------------


def test_at_the_end_running_requests_are_answered(tmp_path: Path) -> None:
    begun = threading.Event()

    def work(request: wire.AnyRequest) -> wire.AnyReply:
        begun.set()
        return echo(request)

    door = Served(str(tmp_path / "overlayd.sock"), work)
    busy, idle, half = door.client(), door.client(), door.client()
    half.sock.sendall(b"\x40\0\0\0{")
    busy.send(1, wire.NatTick())
    door.wait_for_clients(3)
    assert begun.wait(30)
    door.close()
    assert busy.hear() == wire.ResponseFrame(1, wire.Ok())
    assert idle.is_closed()
    assert half.is_closed()
    assert not Path(door.path).exists()


# --- the socket --------------------------------------------------------------------------------------------------


def test_the_socket_is_for_owner_and_group(served: Served) -> None:
    mode = Path(served.path).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660


def test_a_living_daemons_socket_is_not_taken(served: Served) -> None:
    with pytest.raises(OSError, match="another process is listening"):
        sockets.listen(served.path, 0o660)
    assert served.client().ask(wire.StatusRequest()) == wire.Ok()
    assert [each.name for each in Path(served.path).parent.iterdir()] == ["overlayd.sock"]


def test_a_dead_daemons_socket_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "run" / "overlayd.sock")
    sockets.listen(path, 0o660).sock.close()
    again = sockets.listen(path, 0o660)
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    client.close()
    again.sock.close()


def test_what_is_no_socket_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        sockets.listen(str(path), 0o660)
    assert path.read_text() == "mine"


def test_the_longest_path_of_the_rule_can_be_had(tmp_path: Path) -> None:
    room = 103 - len(os.fsencode(tmp_path)) - len("//zlayer-overlayd.sock")
    path = str(tmp_path / ("d" * room) / "zlayer-overlayd.sock")
    assert len(os.fsencode(path)) == 103
    listener = sockets.listen(path, 0o660)
    assert [each.name for each in Path(path).parent.iterdir()] == ["zlayer-overlayd.sock"]
    listener.remove()
    listener.sock.close()


def test_another_daemons_file_is_left_at_the_end(tmp_path: Path) -> None:
    path = str(tmp_path / "overlayd.sock")
    first = sockets.listen(path, 0o660)
    first.sock.close()
    second = sockets.listen(path, 0o660)
    first.remove()
    assert Path(path).exists()
    second.remove()
    assert not Path(path).exists()
    second.sock.close()


def test_of_many_that_start_at_once_one_gets_the_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "overlayd.sock")
    got: list[sockets.Listener] = []
    refused: list[OSError] = []

    def start() -> None:
        try:
            got.append(sockets.listen(path, 0o660))
        except OSError as error:
            refused.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 7)
    got[0].sock.close()


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({}, "/var/run/zlayer-overlayd.sock"),
        ({"data_dir": "/srv/node1"}, "/srv/node1/run/zlayer-overlayd.sock"),
        ({"data_dir": "/srv/node1", "overlay_socket": "/srv/o.sock"}, "/srv/o.sock"),
        ({"overlay_socket": "/srv/o.sock"}, "/srv/o.sock"),
    ],
)
def test_where_the_door_is(changes: dict[str, str], path: str) -> None:
    assert overlay_socket.socket_of(Settings(**changes)) == path


def test_a_long_data_directory_has_its_socket_in_tmp() -> None:
    path = overlay_socket.socket_of(Settings(data_dir="/srv/" + "d" * 100))
    assert path.startswith("/tmp/zlayer-overlayd-")
    assert len(path) == len("/tmp/zlayer-overlayd-0123456789abcdef.sock")


@pytest.mark.root
def test_who_may_not_enter_hears_nothing_and_the_rest_go_on() -> None:
    """Whatever the file's mode has become: the kernel says who connects."""
    request = frame(wire.encode(wire.RequestFrame(1, wire.StatusRequest())))
    path = f"/tmp/zlt-door-{os.getpid()}-turned-away.sock"
    door = Served(path, echo)
    try:
        Path(path).chmod(0o666)
        child = os.fork()
        if child == 0:
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                sock = socket.socket(socket.AF_UNIX)
                sock.settimeout(30)
                sock.connect(path)
                with contextlib.suppress(OSError):
                    sock.sendall(request)
                try:
                    heard = sock.recv(1)
                except ConnectionResetError:
                    heard = b""
                os._exit(len(heard))
            finally:
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert door.client().ask(wire.StatusRequest()) == wire.Ok()
    finally:
        door.close()


@pytest.mark.root
@pytest.mark.parametrize(("mine", "allowed"), [([], False), ([1], False), ([0], True), ([2, 0, 1], True)])
def test_only_root_and_the_group_may_enter(mine: list[int], allowed: bool) -> None:
    """A child of user 65534 connects with these supplementary groups, by their place in `groups`."""
    groups = [each for each in grp.getgrall() if each.gr_gid not in (0, 65534)][:3]
    path = f"/tmp/zlt-door-{os.getpid()}.sock"  # that user could not reach a path below tmp_path
    listener = sockets.listen(path, 0o666)
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([groups[place].gr_gid for place in mine])
            os.setgid(65534)
            os.setuid(65534)
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(path)
            sock.recv(1)
        finally:
            os._exit(0)
    try:
        listener.sock.settimeout(30)
        client, _ = listener.sock.accept()
        assert sockets.may_enter(client, groups[0].gr_name) == allowed
        assert not sockets.may_enter(client, "no-such-group-here")
        client.close()
    finally:
        os.waitpid(child, 0)
        listener.remove()
        listener.sock.close()
