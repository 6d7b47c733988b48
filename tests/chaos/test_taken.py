"""What the daemon stands on is taken from it: its directory, socket, lock, records; what it was asked is taken back.

/run is emptied, a disk goes read-only, a runtime kills a plugin that has just printed its result. Each on each
form of the program.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.blackbox.harness.calls import Answer

from . import judge
from .judge import Live
from .machine import RAISED, Machine, Space, busy
from .scenes import attached, extraction_directories, in_order, live, started
from .storm import LATE, MOST
from .test_storm import QUICK

AT_ONCE = 20.0  # seconds until the daemon is back in its place; it looks twice a second, a busy machine seldom
TWENTY = 20


@pytest.fixture
def on(form: str, boot: Callable[..., Machine]) -> Machine:
    machine = boot(form, "address_cooldown: 1")
    machine.program.tune(**QUICK)
    machine.start_daemon()
    return machine


def at_once(crew: list[Callable[[], object]]) -> None:
    """All of them run at the same time."""
    threads = [threading.Thread(target=each) for each in crew]
    for each in threads:
        each.start()
    for each in threads:
        each.join()


def again(on: Machine, verb: str, cid: str = "", path: str = "") -> Answer:
    """Call until it succeeds, as a runtime does; soon it must."""
    end = time.monotonic() + AT_ONCE
    while (answer := on.call(verb, on.conf(), cid, path)).rc:
        assert time.monotonic() < end, f"{answer}\n{on.log_tail()}"
        time.sleep(0.1)
    return answer


# --- the run directory ------------------------------------------------------------------------------------------------


def all_files(on: Machine) -> None:
    for each in on.run_dir.iterdir():
        shutil.rmtree(each) if each.is_dir() else each.unlink()


def the_socket(on: Machine) -> None:
    (on.run_dir / "cni.sock").unlink()


def the_lock(on: Machine) -> None:
    (on.run_dir / "overlayd.lock").unlink()


def the_number(on: Machine) -> None:
    (on.run_dir / "overlayd.pid").unlink()


def the_records(on: Machine) -> None:
    for each in on.run_dir.glob("state.db*"):
        each.unlink()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("take", [all_files, the_socket, the_lock, the_number, the_records])
def test_what_is_taken_out_of_the_run_directory_comes_back(on: Machine, take: Callable[[Machine], None]) -> None:
    """The same daemon goes on, alone, and knows all it knew; so does the next one."""
    pid = on.daemon()
    one, _ = attached(on, "one")
    take(on)
    again(on, "STATUS")
    other_space = Space(on)
    other = live(json.loads(again(on, "ADD", "other", other_space.path).out), "other", other_space)
    assert set(one.addresses).isdisjoint(other.addresses)
    in_order(on, one, other)
    end = time.monotonic() + AT_ONCE
    while on.daemon() != pid or daemons(on) != [pid]:  # who was started meanwhile sees that and ends
        assert time.monotonic() < end, f"another daemon has the place: {daemons(on)}, not {pid}"
        time.sleep(0.05)
    on.signal_daemon(signal.SIGKILL)
    on.start_daemon()
    in_order(on, one, other)
    for each in (one, other):
        on.call("DEL", on.conf(), each.cid, each.path).ok()
    in_order(on)


def daemons(on: Machine) -> list[int]:
    """Every daemon on the machine's run directory."""
    words = f"--run-dir\0{on.run_dir}\0".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if words in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def replaced(on: Machine) -> None:
    (on.run_dir / "other").write_bytes(os.urandom(1 << 16))
    (on.run_dir / "other").rename(on.run_dir / "state.db")


def overwritten(on: Machine) -> None:
    for each in on.run_dir.glob("state.db*"):
        with each.open("r+b") as file:
            file.write(os.urandom(each.stat().st_size))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("hand", [replaced, overwritten])
def test_records_that_somebody_replaced_are_written_anew(on: Machine, hand: Callable[[Machine], None]) -> None:
    one, _ = attached(on, "one")
    hand(on)
    end = time.monotonic() + AT_ONCE
    while "they were written anew" not in on.log_tail():
        assert time.monotonic() < end, on.log_tail()
        time.sleep(0.05)
    in_order(on, one)
    on.signal_daemon(signal.SIGKILL)
    on.start_daemon()
    in_order(on, one)
    on.call("DEL", on.conf(), "one", one.path).ok()
    in_order(on)


@pytest.mark.timeout(600)
def test_records_of_a_newer_version_are_refused_and_kept(on: Machine) -> None:
    """An older daemon does not begin on them, and says why; what runs goes on, DEL succeeds, and the newer one finds
    everything as it left it."""
    one, space = attached(on, "one")
    two, _ = attached(on, "two")
    on.signal_daemon(signal.SIGTERM)

    def schema(step: int) -> None:
        with contextlib.closing(sqlite3.connect(on.run_dir / "state.db")) as db, db:
            db.execute("UPDATE meta SET value = value + ? WHERE name = 'schema'", (step,))

    schema(1)
    end = time.monotonic() + AT_ONCE
    while "newer version" not in (said := on.call("STATUS", on.conf()).failed(50)["msg"]):
        assert "did not answer within" in said, said  # a busy machine
        assert time.monotonic() < end, said
    on.call("ADD", on.conf(), "three", Space(on).path).failed(11)
    assert "1 received" in space.sh(f"ping -n -q -c 1 -W 5 {two.addresses[0].partition('/')[0]}")
    on.call("DEL", on.conf(), "two", two.path).ok()
    schema(-1)
    on.start_daemon()
    in_order(on, one)


@pytest.mark.timeout(600)
def test_the_agents_socket_comes_back(on: Machine) -> None:
    path = on.data_dir / "run/zlayer-overlayd.sock"
    path.unlink()
    end = time.monotonic() + AT_ONCE
    while not path.is_socket():
        assert time.monotonic() < end, on.log_tail()
        time.sleep(0.05)


@pytest.mark.timeout(600)
def test_a_read_only_data_directory(form: str, boot: Callable[..., Machine]) -> None:
    """Containers come and go; there is no door for agents, and `status` says so."""
    on = boot(form, plain=True)
    on.sh(
        f"mount -t tmpfs -o size=100m none {on.data_dir}",
        f"echo 'cluster_cidr: 10.200.0.0/16' > {on.data_dir}/overlayd.yaml",
        f"mount -o remount,ro {on.data_dir}",
    )
    space = Space(on)
    again(on, "STATUS")
    on.call("ADD", on.conf(), "a", space.path).ok()
    assert any("Read-only" in said for said in on.ask("status")["problems"])
    on.call("DEL", on.conf(), "a", space.path).ok()
    in_order_without_memory(on)


def in_order_without_memory(on: Machine) -> None:
    assert on.ask("attachments") == []
    assert on.sh("ip -o link | grep -c -- '-v@' || true").strip() == "0"


@pytest.mark.timeout(600)
def test_few_descriptors_are_enough_for_idle_crowds(form: str, boot: Callable[..., Machine]) -> None:
    """A daemon that was started under a low limit takes all that it may have."""
    on = boot(form)
    on.start_daemon()
    on.signal_daemon(signal.SIGTERM)
    words = " ".join(on.program.daemon)
    env = " ".join(f"{name}={value}" for name, value in on.program.env.items())
    on.sh(
        f"ulimit -Sn 1024; env {env} {words} overlayd --run-dir {on.run_dir} --data-dir {on.data_dir}"
        f" </dev/null >>{on.run_dir}/overlayd.log 2>&1 &"
    )
    pid = on.start_daemon()
    (line,) = [x for x in Path(f"/proc/{pid}/limits").read_text().splitlines() if x.startswith("Max open files")]
    soft, hard = line.split()[3:5]
    assert soft == hard


# --- DEL never fails --------------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
@pytest.mark.parametrize("point", ["State.drop before", "Kernel.remove_link before", "FenceMembers.remove_port before"])
def test_a_deletion_that_the_daemon_cannot_do_now_is_done_later(on: Machine, point: str) -> None:
    """The runtime hears success, the link is gone at once, and the rest follows without it."""
    one, space = attached(on, "one")
    asks_again = on.program.form == "single"  # what the launcher was refused, Python asks once more
    on.program.arm(f"daemon {point}", "fail", 1.0 if asks_again else 0.0)
    said = on.call("DEL", on.conf(), "one", one.path)
    said.ok()
    assert not on.program.armed
    assert "could not delete it now" in said.err
    assert "queued" in said.err
    assert space.sh("ip -o link show eth0 2>/dev/null || echo gone").strip() == "gone"
    in_order(on, within=15.0)
    if asks_again:
        _, space = attached(on, "two")
        on.program.arm(f"daemon {point}", "fail")
        said = on.call("DEL", on.conf(), "two", space.path)
        said.ok()
        assert said.err == "" and not on.program.armed
        in_order(on)


FULL = "dd if=/dev/zero of={0}/ballast bs=4k 2>/dev/null || true; cat {0}/ballast >> {0}/more 2>/dev/null || true"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("state", [signal.SIGSTOP, signal.SIGKILL])
@pytest.mark.parametrize("disk", [FULL, "mount -o remount,ro {0} || mount -t tmpfs -o ro none {0}"], ids=["full", "ro"])
def test_a_deletion_without_a_daemon_and_without_a_disk(
    form: str, boot: Callable[..., Machine], state: signal.Signals, disk: str
) -> None:
    """The daemon hangs or is dead, and nothing can be written: DEL succeeds in time, and the link is gone."""
    on = boot(form, plain=True)
    on.sh(f"mount -t tmpfs -o size=3m none {on.run_dir}")
    again(on, "STATUS")
    space = Space(on)
    on.call("ADD", on.conf(), "a", space.path).ok()
    (pid,) = daemons(on)
    os.kill(pid, state)
    on.sh(disk.format(on.run_dir))
    for _ in range(2):
        said = on.call("DEL", on.conf(autostart=False), "a", space.path)
        said.ok()
        assert said.took < MOST["DEL"] + busy(LATE)
        assert space.sh("ip -o link show eth0 2>/dev/null || echo gone").strip() == "gone"


@pytest.mark.timeout(600)
def test_a_deletion_that_is_wrong_in_itself_still_says_so(on: Machine) -> None:
    on.call("DEL", on.conf(), "a/b", "").failed(4)


@pytest.mark.timeout(600)
def test_twenty_deletions_while_the_daemon_sleeps_twelve_seconds(on: Machine) -> None:
    some: list[Live] = []
    spaces = [Space(on) for _ in range(TWENTY + 1)]

    def add(n: int) -> None:
        said = on.call("ADD", on.conf(), f"c{n}", spaces[n].path).ok()
        some.append(live(said, f"c{n}", spaces[n]))

    at_once([lambda n=n: add(n) for n in range(TWENTY + 1)])  # type: ignore[misc]
    (stays,) = (each for each in some if each.cid == f"c{TWENTY}")
    pid = on.daemon()
    on.signal_daemon(signal.SIGSTOP, wait=False)
    waker = threading.Timer(12.0, lambda: on.signal_daemon(signal.SIGCONT, wait=False))
    waker.start()
    answers: list[Answer] = []
    at_once(
        [lambda e=e: answers.append(on.call("DEL", on.conf(), e.cid, e.path)) for e in some if e is not stays]  # type: ignore[misc]
    )
    for each in answers:
        each.ok()
        assert each.took < MOST["DEL"] + busy(LATE)
    waker.join()
    in_order(on, stays, within=15.0)
    assert on.daemon() == pid
    # Those ids may come again: a deletion of before must not touch them.
    at_once([lambda n=n: add(n) for n in range(TWENTY)])  # type: ignore[misc]
    time.sleep(3.0)
    in_order(on, stays, *some[TWENTY + 1 :])


# --- what plugins leave -----------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_what_a_runtime_with_another_temporary_directory_leaves_is_swept(on: Machine) -> None:
    """The daemon's own $TMPDIR is another one; it hears of this from the calls that come through."""
    if on.program.form != "plain":
        pytest.skip("only the single file without the launcher unpacks itself")
    on.sh("mkdir -p /tmp/others")
    on.program.env["TMPDIR"] = "/tmp/others"
    on.call("STATUS", on.conf()).ok()
    on.sh("mkdir /tmp/others/_MEI7fffffffabcdef; touch -d '1 hour ago' /tmp/others/_MEI7fffffffabcdef")
    end = time.monotonic() + 15
    while on.sh("ls /tmp/others").strip():
        assert time.monotonic() < end, on.sh("ls -la /tmp/others")
        time.sleep(0.2)
    assert extraction_directories(on) == []


# --- at the same time -------------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_one_container_added_by_several_at_once(on: Machine) -> None:
    """One has it, the others are told so; after one DEL nothing is left."""
    for _ in range(5):
        space = Space(on)
        answers: list[Answer] = []
        at_once([lambda s=space, a=answers: a.append(on.call("ADD", on.conf(), "twin", s.path)) for _ in range(6)])  # type: ignore[misc]
        (first,) = [each for each in answers if each.rc == 0]
        for each in answers:
            if each is not first:
                each.failed(101)
        in_order(on, live(json.loads(first.out), "twin", space))
        on.call("DEL", on.conf(), "twin", space.path).ok()
        in_order(on)
        space.delete()


@pytest.mark.timeout(600)
def test_a_collection_during_additions_takes_none_of_them(on: Machine) -> None:
    """Repeated GC with an empty list while containers are added: each attachment that was added stays."""
    done = threading.Event()

    def collect() -> None:
        while not done.is_set():
            on.call("GC", on.conf(**{"cni.dev/valid-attachments": []})).ok()

    collecting = threading.Thread(target=collect)
    collecting.start()
    there: list[Live] = []

    def some(part: range) -> None:
        there.extend([attached(on, f"c{n}")[0] for n in part])

    at_once([lambda n=n: some(range(n, 24, 4)) for n in range(4)])  # type: ignore[misc]
    done.set()
    collecting.join()
    in_order(on, *there)
    at_once([lambda e=e: on.call("DEL", on.conf(), e.cid, e.path).ok() for e in there])  # type: ignore[misc]
    in_order(on)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("point", ["State.reserve after", "Kernel.create_port after", RAISED])
def test_a_namespace_deleted_during_its_add(on: Machine, point: str) -> None:
    """Whatever ADD says, nothing of it stays."""
    space = Space(on)
    on.program.arm(f"daemon {point}", "sleep", 0.3)
    process = started(on, "ADD", "short", space)
    end = time.monotonic() + 10
    while on.program.armed:
        assert time.monotonic() < end
        time.sleep(0.002)
    space.delete()
    process.communicate(timeout=30)
    in_order(on, within=15.0)
    on.call("DEL", on.conf(), "short", space.path).ok()
    in_order(on)


@pytest.mark.timeout(600)
def test_an_addition_and_a_deletion_at_once(on: Machine) -> None:
    """Both answer; after one more DEL nothing is left, and while its interface is there its address is held."""
    for n in range(10):
        space = Space(on)
        at_once([
            lambda s=space: on.call("ADD", on.conf(), "both", s.path),  # type: ignore[misc]
            lambda s=space, n=n: (time.sleep(n * 0.004), on.call("DEL", on.conf(), "both", s.path).ok()),  # type: ignore[misc]
        ])  # fmt: skip
        held = [word for word in space.sh("ip -o -4 addr show dev eth0 2>/dev/null || true").split() if "/" in word]
        recorded = {a for each in on.ask("attachments") for a in each["addresses"]}
        assert {a for a in held if a.startswith("10.200")} <= recorded
        on.call("DEL", on.conf(), "both", space.path).ok()
        in_order(on)
        space.delete()


@pytest.mark.timeout(600)
def test_links_without_a_record_go_when_a_daemon_begins(on: Machine) -> None:
    """Of our making (name and MAC): what a lost record leaves. It goes with its address."""
    one, _ = attached(on, "one")
    on.signal_daemon(signal.SIGKILL)
    with contextlib.closing(sqlite3.connect(on.run_dir / "state.db")) as db, db:
        db.execute("DELETE FROM record WHERE kind = 'attachment'")
    on.start_daemon()
    in_order(on)
    assert judge.stray_files(on) == []
    assert one.host_end not in on.sh("ip -o link")
