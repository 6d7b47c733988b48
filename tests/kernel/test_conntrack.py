"""The flows of released addresses are deleted, and none of an address's next owner."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cni.host import conntrack, conntrack_flusher
from cni.host.conntrack import Conntrack
from cni.host.conntrack_flusher import ConntrackFlusher

from .conftest import Space

pytestmark = pytest.mark.root
ONE, TWO = "127.0.0.5", "127.0.0.6"


@pytest.fixture(params=["all are listed", "the kernel selects"])
def tracked(host: Space, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Space:
    """A namespace that tracks the flows of its loopback interface."""
    if request.param == "the kernel selects":
        monkeypatch.setattr(conntrack, "FEW_FLOWS", -1)
    host.ip("link set lo up")
    rules = "table inet t { chain out { type filter hook output priority 0; ct state new counter; }; }"
    subprocess.run(["ip", "netns", "exec", host.name, "nft", rules], check=True, timeout=30)
    return host


@pytest.fixture
def flusher(tracked: Space) -> Iterator[ConntrackFlusher]:
    made = tracked.inside(ConntrackFlusher)
    yield made
    made.close()


def open_flow(space: Space, source: str) -> None:
    """A flow from `source` to another address."""

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((source, 0))
            sock.sendto(b"x", ("127.0.0.9", 9))

    space.inside(send)


def flows(space: Space, source: str) -> int:
    """How many flows the kernel tracks from `source`."""

    def count() -> int:
        reader = Conntrack()
        try:
            return len(next(iter(reader._dumps(4, {source}))))
        finally:
            reader.close()

    return space.inside(count)


def wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_queued_flows_are_deleted_soon(tracked: Space, flusher: ConntrackFlusher) -> None:
    open_flow(tracked, ONE)
    assert flows(tracked, ONE) == 1
    flusher.forget([ONE])
    wait(lambda: flows(tracked, ONE) == 0)


def test_a_finished_address_keeps_the_flows_it_opens_from_then_on(tracked: Space, flusher: ConntrackFlusher) -> None:
    open_flow(tracked, ONE)
    open_flow(tracked, TWO)
    flusher.forget([ONE, TWO])
    flusher.finish([ONE])
    assert flows(tracked, ONE) == 0
    open_flow(tracked, ONE)
    wait(lambda: flows(tracked, TWO) == 0)  # that one stayed in the queue
    time.sleep(2 * conntrack_flusher.GATHER)
    assert flows(tracked, ONE) == 1


def test_finish_waits_for_a_deletion_that_has_begun(
    tracked: Space, flusher: ConntrackFlusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on = threading.Event(), threading.Event()
    delete = flusher._conntrack.forget

    def slowly(addresses: list[str]) -> int:
        began.set()
        assert go_on.wait(5)
        return delete(addresses)

    monkeypatch.setattr(flusher._conntrack, "forget", slowly)
    flusher.forget([ONE])
    assert began.wait(5)
    finished = threading.Event()
    waiting = threading.Thread(target=lambda: (flusher.finish([ONE]), finished.set()))
    waiting.start()
    flusher.finish([TWO])  # another address does not wait
    assert not finished.wait(0.2)
    go_on.set()
    assert finished.wait(5)
    waiting.join()


def test_closing_deletes_what_is_queued(tracked: Space) -> None:
    flusher = tracked.inside(ConntrackFlusher)
    open_flow(tracked, ONE)
    flusher.forget([ONE])
    flusher.close()
    assert flows(tracked, ONE) == 0
