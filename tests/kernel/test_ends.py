"""How processes end, as the daemon hears of it: real processes, ended in every way."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from cni import proc
from cni.host import process_exit

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture
def watcher() -> Iterator[process_exit.ExitWatcher]:
    made = process_exit.ExitWatcher()
    yield made
    made.close()


def begun(line: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sh", "-c", line], stdin=subprocess.PIPE)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def ended(made: subprocess.Popen[bytes], how: str, *, reap: bool) -> None:
    """End it; with `reap` its parent asks at once, as a runtime does, else only when the test is over."""
    if how == "killed":
        made.send_signal(signal.SIGKILL)
    assert made.stdin is not None
    made.stdin.close()
    if reap:
        made.wait(10)


@pytest.mark.parametrize("reap", [True, False])
@pytest.mark.parametrize(("how", "line", "told"), [
    ("well", "read x; exit 0", False), ("badly", "read x; exit 3", True), ("killed", "read x", True),
])  # fmt: skip
def test_only_a_failure_is_told(watcher: process_exit.ExitWatcher, how: str, line: str, told: bool, reap: bool) -> None:
    before = descriptors()
    made = begun(line)
    heard = threading.Event()
    assert watcher.watch(made.pid, proc.start_time(made.pid), heard.set)
    assert not heard.wait(0.1)
    ended(made, how, reap=reap)
    assert heard.wait(10 if told else 0.3) == told
    made.wait(10)
    end = time.monotonic() + 10
    while descriptors() > before:
        assert time.monotonic() < end, "a descriptor is left"
        time.sleep(0.01)


def test_a_number_that_is_anothers_is_not_watched(watcher: process_exit.ExitWatcher) -> None:
    made = begun("read x")
    heard = threading.Event()
    assert not watcher.watch(made.pid, proc.start_time(made.pid) - 1, heard.set)
    ended(made, "killed", reap=True)
    assert not watcher.watch(made.pid, 1, heard.set)
    assert not heard.wait(0.2)


def test_many_at_once(watcher: process_exit.ExitWatcher) -> None:
    heard: list[int] = []
    crowd = [begun("read x") for _ in range(60)]
    for n, made in enumerate(crowd):
        assert watcher.watch(made.pid, proc.start_time(made.pid), lambda n=n: heard.append(n))  # type: ignore[misc]
    for n, made in enumerate(crowd):
        ended(made, "killed" if n % 2 else "well", reap=n % 3 == 0)
    for made in crowd:
        made.wait(10)
    end = time.monotonic() + 10
    while len(heard) < 60 and time.monotonic() < end:  # `read` at the end of its input exits with 1
        time.sleep(0.01)
    assert sorted(heard) == list(range(60))
