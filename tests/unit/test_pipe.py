r"""The client through a named pipe of Windows: the same calls, failures and reconnects, against a fake of `_winapi`."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni.overlay import wire
from cni.overlay.errors import DeadlinePassed, Refused, TransportError
from cni.overlay.manager import Dialing, OverlayManager, Timeouts
from cni.overlay.pipe import DEFAULT_PIPE, PipeStream, open_pipe
from cni.overlay.sockets import find_socket
from cni.overlay.transport import UnixStream, connect
from tests.fakes.winapi import FakeWinapi
from tests.unit.fake_overlayd import FakeOverlayd, hang_up, raw, silence

GUID = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
QUICK = Dialing(attempts=3, pause=0.01)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeOverlayd]:
    fake = FakeOverlayd(tmp_path / "o.sock").start()
    yield fake
    fake.stop()


@pytest.fixture
def api(daemon: FakeOverlayd) -> FakeWinapi:
    return FakeWinapi({DEFAULT_PIPE: daemon.path})


def manager_of(api: FakeWinapi, name: str = DEFAULT_PIPE, seconds: float = 10.0) -> OverlayManager:
    made = OverlayManager("prod", "42", socket=name, dialing=QUICK, connect=lambda address, _: open_pipe(address, api))
    return made.with_timeouts(Timeouts(call=seconds))


def test_a_life_through_a_pipe(daemon: FakeOverlayd, api: FakeWinapi) -> None:
    with manager_of(api) as manager:
        manager.setup_global_overlay()
        manager.setup_service_overlay("web")
        assert manager.attach_container_hcn("ctr", "web", None, True) == ("10.200.5.2", GUID)
        assert manager.hcn_attachments() == {GUID: ("web", "10.200.5.2")}
        with pytest.raises(Refused, match="no service bridge"):
            manager.attach_container_hcn("ctr", "none")
        manager.detach_container_hcn(GUID)
        manager.cleanup()
        assert len(api.handles) == daemon.accepted == 1
    assert api.handles == {}
    assert api.flags == 0x40000000 | 0x00110000  # overlapped; the daemon may identify the caller, not act as the caller


def test_an_answer_larger_than_one_read(daemon: FakeOverlayd, api: FakeWinapi) -> None:
    with manager_of(api) as manager:
        services = [f"{n:05}" for n in range(3000)]
        for answer in (services, services[:1]):
            daemon.services = {name: f"zl-{name}-{'x' * 40}" for name in answer}
            assert manager.prune_orphan_bridges([]) == [f"zl-{name}-{'x' * 40}" for name in answer]


def test_a_request_larger_than_one_chunk(daemon: FakeOverlayd, api: FakeWinapi) -> None:
    with manager_of(api) as manager:
        live = ["x" * 1000] * 1000
        manager.prune_orphan_bridges(live)
        assert daemon.asked == [wire.PruneOrphanBridges(tuple(live))]


def test_a_busy_pipe_is_tried_again(api: FakeWinapi) -> None:
    api.busy = 2
    with manager_of(api) as manager:
        assert manager.status().peer_count == 0
    api.busy = 3
    with pytest.raises(TransportError, match="All pipe instances are busy"):
        manager_of(api).status()


def test_no_daemon_is_a_transport_error(api: FakeWinapi) -> None:
    with pytest.raises(TransportError, match="cannot find the file"):
        manager_of(api, r"\\.\pipe\another").status()


def test_a_restarted_daemon_is_set_up_again(daemon: FakeOverlayd, api: FakeWinapi) -> None:
    with manager_of(api) as manager:
        manager.setup_global_overlay()
        daemon.restart()
        daemon.ops()
        manager.status()
        assert daemon.ops() == ["set_local_node_id", "setup_global_overlay", "status"]
    assert api.handles == {}


@pytest.mark.parametrize("answer", [hang_up, raw(b"\x05\0\0\0{}")], ids=["end", "cut"])
def test_a_broken_connection_is_replaced_and_closed(daemon: FakeOverlayd, api: FakeWinapi, answer: object) -> None:
    with manager_of(api) as manager:
        daemon.next(wire.NatTick, answer)  # type: ignore[arg-type]
        manager.nat_maintenance_tick()
        assert daemon.ops() == ["nat_tick", "nat_tick"]
        assert len(api.handles) == 1


def test_a_silent_daemon_is_given_up_at_the_deadline(daemon: FakeOverlayd, api: FakeWinapi) -> None:
    manager = manager_of(api, seconds=0.2)
    daemon.next(wire.StatusRequest, silence)
    with pytest.raises(DeadlinePassed, match=r"did not answer Status within 0\.2 s"):
        manager.status()
    assert api.handles == {}


def test_closing_wakes_a_thread_that_reads(daemon: FakeOverlayd, api: FakeWinapi) -> None:
    manager = manager_of(api, seconds=60.0)
    daemon.next(wire.StatusRequest, silence)
    daemon.next(wire.StatusRequest, silence)
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            manager.with_dialing(Dialing(attempts=1)).status()
        except TransportError as error:
            failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while "status" not in daemon.ops():
        assert thread.is_alive()
    api.pipes.clear()  # so that the second try finds none
    manager.close()
    thread.join(10)
    assert not thread.is_alive()
    assert isinstance(failures[0], TransportError)
    assert api.handles == {}


def test_a_closed_stream_stays_closed(api: FakeWinapi) -> None:
    stream = open_pipe(DEFAULT_PIPE, api)
    stream.close()
    stream.close()
    for work in (lambda: stream.send(b"x", 1.0), lambda: stream.receive(1.0)):
        with pytest.raises(OSError, match="closed"):
            work()
    assert api.handles == {}


def test_a_short_write_is_an_error(api: FakeWinapi) -> None:
    api.short = True
    stream = open_pipe(DEFAULT_PIPE, api)
    with pytest.raises(OSError, match="2 of 4 bytes"):
        stream.send(b"abcd", 1.0)
    stream.close()


def test_a_read_in_time_and_one_too_late(daemon: FakeOverlayd, api: FakeWinapi) -> None:
    stream: PipeStream = open_pipe(DEFAULT_PIPE, api)
    with pytest.raises(TimeoutError):
        stream.receive(0.01)
    daemon.stop()
    assert stream.receive(10.0) == b""
    stream.close()
    daemon.start()


def test_the_address_says_which_stream(daemon: FakeOverlayd) -> None:
    with pytest.raises(OSError, match="named pipes are Windows'"):
        connect(DEFAULT_PIPE, 1.0)
    stream = connect(daemon.path, 1.0)
    assert isinstance(stream, UnixStream)
    stream.close()


WITHOUT_UNIX = """
import os, socket, sys
for module, names in ((socket, ("AF_UNIX", "SO_PEERCRED")), (os, ("geteuid", "getuid", "setns", "memfd_create"))):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
sys.modules.update(dict.fromkeys(("fcntl", "grp", "pwd", "resource")))
from cni.overlay.manager import OverlayManager
from cni.overlay.manager import TransportError, Dialing
try:
    OverlayManager("p", "i", socket="\\\\\\\\.\\\\pipe\\\\zlayer-overlayd", dialing=Dialing(attempts=1)).status()
except TransportError as error:
    print(error.msg)
"""


def test_the_client_loads_without_the_names_that_windows_lacks() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_UNIX], capture_output=True, text=True, timeout=60, check=True)
    assert "named pipes are Windows'" in done.stdout


def test_where_the_daemon_is_on_windows() -> None:
    assert find_socket(env={}, windows=True) == DEFAULT_PIPE == r"\\.\pipe\zlayer-overlayd"
    assert find_socket(env={"ZLAYER_DATA_DIR": ""}, windows=True) == DEFAULT_PIPE
    for data_dir, env in (("C:/z", {}), (None, {"ZLAYER_DATA_DIR": "C:/z"})):
        with pytest.raises(ValueError, match="name the pipe"):
            find_socket(data_dir, env, windows=True)
