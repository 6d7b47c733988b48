"""Running containers do not notice what becomes of the daemon: 1,000 packets a second, both ways, and none is lost."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

import pytest

from .machine import Machine, Space
from .program import Program
from .stream import Told, stream
from .test_storm import QUICK

OTHERS = 30


def attach(on: Machine, name: str, service: str) -> tuple[str, Space]:
    space = Space(on)
    said = on.call("ADD", on.conf(service=service), name, space.path).ok()
    return said["ips"][0]["address"].partition("/")[0], space


def others_come_and_go(on: Machine) -> None:
    """ADD and DEL of containers in both services and in one of their own."""

    def some(numbers: range) -> None:
        for n in numbers:
            conf, space = on.conf(service=("web", "db", "new")[n % 3], ephemeral=n % 3 == 2), Space(on)
            on.call("ADD", conf, f"other{n}", space.path).ok()
            on.call("DEL", conf, f"other{n}", space.path).ok()

    crew = [threading.Thread(target=some, args=(range(n, OTHERS, 3),)) for n in range(3)]
    for each in crew:
        each.start()
    for each in crew:
        each.join()


def upgrade(on: Machine) -> None:
    """A newer version's plugin finds the door closed, and starts its own daemon; then back again."""
    old = on.program
    place = on.dir / "newer"
    place.mkdir()
    newer = Program(old.form if old.form == "source" else "unpacked", place, on.data_dir, version="9.9.9")
    assert on.ask("status")["version"] != "9.9.9"
    for version, program in (("9.9.9", newer), (old.version, old)):
        on.program = program
        on.signal_daemon(signal.SIGTERM)
        on.start_daemon()
        assert on.ask("status")["version"] == version
        assert len(on.ask("attachments")) == 3


@pytest.mark.timeout(600)
def test_no_packet_is_lost(form: str, boot: Callable[..., Machine], capsys: pytest.CaptureFixture[str]) -> None:
    on = boot(form, "address_cooldown: 1")
    on.program.tune(**{**QUICK, "cni__daemon__reconcile__node__INTERVAL": 1.0})
    on.start_daemon()
    a, b, c = attach(on, "a", "web"), attach(on, "b", "web"), attach(on, "c", "db")
    told: dict[str, Told] = {}

    def during(what: str, work: Callable[[], object]) -> None:
        with stream(on, dict((a, b, c)), [(a[0], b[0]), (a[0], c[0])]) as running:
            work()
            time.sleep(0.3)
            told[what] = running.told()

    def killed() -> None:
        for _ in range(3):
            on.signal_daemon(signal.SIGKILL)
            on.start_daemon()

    def restarted() -> None:
        for _ in range(2):
            on.signal_daemon(signal.SIGTERM)
            on.start_daemon()

    def collected() -> None:
        valid = [{"containerID": each, "ifname": "eth0"} for each in ("a", "b", "c")]
        on.call("GC", on.conf(**{"cni.dev/valid-attachments": valid})).ok()
        on.call("GC", on.conf(**{"cni.dev/valid-attachments": []})).ok()  # alive, and therefore kept

    during("restart", restarted)
    during("kill -9", killed)
    during("upgrade", lambda: upgrade(on))
    during("resync", lambda: time.sleep(2.5))
    during("GC", collected)
    during("30 others", lambda: others_come_and_go(on))
    assert len(on.ask("attachments")) == 3
    with capsys.disabled():
        for what, each in told.items():
            print(f"\n{form}, {what}: {each.sent} packets, longest silence {each.longest_gap:.3f} s", end="")  # noqa: T201
    assert {what: each.lost for what, each in told.items() if any(each.lost.values())} == {}
    assert all(each.sent > 1000 for each in told.values())
