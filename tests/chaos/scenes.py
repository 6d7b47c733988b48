"""Scenes: one thing goes wrong at one moment, and what must hold then. Short, and always the same.

Each takes a machine whose daemon runs without attachments, and leaves it so. `test_scenes.py` plays them;
`test_can_fail.py` plays them with a deliberate fault in the daemon.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from . import judge
from .judge import Live
from .machine import RAISED, Json, Machine, Space
from .program import LAUNCHER_POINTS

LEFT_NOTHING = 3.0  # seconds after which nothing is left of a failed ADD
BUSY = 1.5  # seconds more for a busy machine
SOON = 1.5  # seconds in which the daemon undoes a call whose caller has ended: less than two rounds of its reconciler
QUICKLY = 0.3  # seconds from the start of a daemon in which only the daemon itself can have changed anything


def attached(on: Machine, cid: str, **conf: object) -> tuple[Live, Space]:
    """A container, attached."""
    space = Space(on)
    said = on.call("ADD", on.conf(**conf), cid, space.path).ok()
    return live(said, cid, space), space


def live(said: Json, cid: str, space: Space) -> Live:
    return Live(cid, space.path, tuple(ip["address"] for ip in said["ips"]), said["interfaces"][-2]["name"])


def in_order(on: Machine, *who: Live, within: float = LEFT_NOTHING + BUSY) -> None:
    """Soon records and kernel agree that exactly these are attached. Raises AssertionError."""
    end = time.monotonic() + within
    while left := judge.faults(on, {each.cid: each for each in who}):
        assert time.monotonic() < end, "\n".join([*left, on.log_tail()])
        time.sleep(0.05)


def started(
    on: Machine, verb: str, cid: str, space: Space, *, fault: str = "", **conf: object
) -> subprocess.Popen[bytes]:
    """A call that has begun, with its stdin at its end. `fault`: the launcher kills itself at this point."""
    env = on.environment(verb, CNI_CONTAINERID=cid, CNI_NETNS=space.path, CNI_IFNAME="eth0")
    if fault:
        env["ZLAYER_LAUNCHER_FAULT"] = fault

    def begin() -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        return subprocess.Popen(on.program.command, stdin=pipe, stdout=pipe, stderr=pipe, env=env, cwd="/")

    process = on.inside(begin)
    assert process.stdin is not None
    process.stdin.write(json.dumps(on.conf(**conf)).encode())
    process.stdin.close()
    process.stdin = None
    return process


def passed(on: Machine, point: str, within: float = 10.0) -> None:
    """Wait until a thread has passed the armed `point`."""
    end = time.monotonic() + within
    while on.program.armed:
        assert time.monotonic() < end, f"no thread passed {point}"
        time.sleep(0.002)


# --- the scenes ---------------------------------------------------------------------------------------------------


def a_step_fails(on: Machine) -> None:
    """The kernel refuses a step of an ADD: the ADD fails, and without any DEL nothing is left."""
    space = Space(on)
    for point in (
        "FenceMembers.add_port after",
        "Kernel.create_port after",
        RAISED,
        "State.save after",
    ):
        on.program.arm(f"daemon {point}", "fail")
        on.call("ADD", on.conf(), "refused", space.path).failed(100)
        in_order(on, within=QUICKLY)


def a_plugin_is_killed_in_an_add(on: Machine) -> None:
    """The runtime gives up while the link is made; it calls no DEL."""
    for point in ("State.reserve after", RAISED):
        space = Space(on)
        on.program.arm(f"daemon {point}", "sleep", 0.3)
        process = started(on, "ADD", "given-up", space)
        passed(on, point)
        process.kill()
        process.communicate(timeout=5)
        in_order(on, within=SOON)


def a_plugin_is_killed_before_it_can_print(on: Machine) -> None:
    """The daemon has committed, and the plugin dies before the runtime has the result; no DEL follows."""
    space = Space(on)
    on.program.arm("daemon serve after", "sleep", 0.3)
    process = started(on, "ADD", "unheard", space)
    passed(on, "serve after")
    process.kill()
    process.communicate(timeout=5)
    in_order(on, within=SOON)


def a_plugin_is_killed_after_it_printed(on: Machine) -> None:
    """The result is out, and the process that the runtime started is killed before it ends: the ADD has failed, and is
    undone without a DEL. One that was faster than the kill has succeeded, and stays."""
    space, killed = Space(on), 0
    if on.program.form == "single":
        return  # the launcher ends too soon after its output; `the_launcher_is_killed_anywhere` has it
    for n in range(40):
        process = started(on, "ADD", "late", space)
        assert process.stdout is not None
        out = process.stdout.readline()
        assert out.endswith(b"}\n"), out
        time.sleep(0.0005 * (n % 3))
        process.kill()
        process.communicate(timeout=10)
        if process.returncode == 0:
            in_order(on, live(json.loads(out), "late", space))
            on.call("DEL", on.conf(), "late", space.path).ok()
            continue
        killed += 1
        in_order(on, within=SOON)
    assert killed, "every kill came too late"


def the_launcher_is_killed_anywhere(on: Machine) -> None:
    """An ADD whose launcher is killed has failed, and is undone without a DEL; a killed DEL is repeated."""
    if on.program.form != "single":
        return
    for point in LAUNCHER_POINTS:
        space = Space(on)
        process = started(on, "ADD", "killed", space, fault=point)
        process.communicate(timeout=10)
        assert process.returncode == -signal.SIGKILL, f"the launcher does not pass {point}"
        in_order(on, within=SOON)
        again, space = attached(on, "again")
        started(on, "DEL", "again", space, fault=point).communicate(timeout=10)
        on.call("DEL", on.conf(), again.cid, space.path).ok()
        in_order(on, within=SOON)


def the_run_directory_is_deleted(on: Machine) -> None:
    """The same daemon makes it its own again, with everything it knew; no second one begins meanwhile, even while the
    first does not move."""
    pid = on.daemon()
    one, _ = attached(on, "one")
    on.signal_daemon(signal.SIGSTOP, wait=False)
    shutil.rmtree(on.run_dir)
    on.call("STATUS", on.conf()).failed(50)
    os.kill(pid, signal.SIGCONT)
    end = time.monotonic() + 10
    while on.call("STATUS", on.conf()).rc or on.daemon() != pid:
        assert time.monotonic() < end, f"{on.daemon()}, not {pid}\n{on.log_tail()}"
        time.sleep(0.1)
    other, _ = attached(on, "other")
    in_order(on, one, other)
    on.signal_daemon(signal.SIGKILL)
    on.start_daemon()
    in_order(on, one, other)
    for each in (one, other):
        on.call("DEL", on.conf(), each.cid, each.path).ok()
    in_order(on)


def a_deletion_fails_in_the_daemon(on: Machine) -> None:
    """The runtime hears success, and the rest is done without it."""
    one, _ = attached(on, "stuck")
    on.program.arm("daemon State.drop before", "fail")
    on.call("DEL", on.conf(), one.cid, one.path).ok()
    in_order(on, within=15.0)


def a_daemon_dies_in_an_add(on: Machine) -> None:
    """The plugin asks the next daemon the same again, and gets its result, whatever the first had done."""
    for point in ("State.reserve after", "Kernel.create_port after", "State.save after", "serve after"):
        space = Space(on)
        on.program.arm(f"daemon {point}", "kill")
        said = on.call("ADD", on.conf(), "twice", space.path).ok()
        assert not on.program.armed, point
        in_order(on, live(said, "twice", space))
        on.call("DEL", on.conf(), "twice", space.path).ok()
        in_order(on)


def a_daemon_dies_in_an_add_and_nobody_asks_again(on: Machine) -> None:
    """The next daemon undoes what was half made before it opens its door."""
    for point in ("State.reserve after", "Kernel.create_port after", RAISED):
        space = Space(on)
        on.program.arm(f"daemon {point}", "kill")
        on.call("ADD", on.conf(autostart=False), "half", space.path).failed(11)
        on.start_daemon()
        in_order(on, within=QUICKLY)


def a_daemon_dies_in_a_del(on: Machine) -> None:
    """DEL succeeds, by way of the next daemon."""
    for point in (
        "Kernel.remove_link before",
        "FenceMembers.remove_port before",
        "State.drop before",
        "State.drop after",
    ):
        _, space = attached(on, "going")
        on.program.arm(f"daemon {point}", "kill")
        on.call("DEL", on.conf(), "going", space.path).ok()
        assert not on.program.armed, point
        in_order(on)


def a_deletion_is_written_down(on: Machine) -> None:
    """No daemon, and none may be started: the link goes at once, the rest before the next daemon opens its door."""
    other, other_space = attached(on, "stays")
    _, space = attached(on, "leaves")
    on.signal_daemon(signal.SIGKILL)
    said = on.call("DEL", on.conf(autostart=False), "leaves", space.path)
    said.ok()
    assert "queued" in said.err
    assert space.sh("ip -o link show eth0 || echo gone").strip().endswith("gone")
    on.start_daemon()
    assert [each["container_id"] for each in on.ask("attachments")] == ["stays"]
    in_order(on, other)
    on.call("DEL", on.conf(), "stays", other_space.path).ok()
    in_order(on)


def a_namespace_goes(on: Machine) -> None:
    """Without a DEL: what is gone at two looks in a row is released."""
    _, space = attached(on, "vanished")
    space.delete()
    in_order(on, within=15.0)


def the_records_are_damaged(on: Machine) -> None:
    """They are set aside and begun anew; links without a record are removed, and the container can be attached anew."""
    _, space = attached(on, "forgotten")
    on.signal_daemon(signal.SIGKILL)
    for suffix in ("-wal", "-shm"):
        (on.run_dir / f"state.db{suffix}").unlink(missing_ok=True)
    (on.run_dir / "state.db").write_bytes(os.urandom(8192))
    on.start_daemon()
    in_order(on)
    assert (on.run_dir / "state.db.damaged").exists()
    (on.run_dir / "state.db.damaged").unlink()
    said = on.call("ADD", on.conf(), "forgotten", space.path).ok()
    in_order(on, live(said, "forgotten", space))
    on.call("DEL", on.conf(), "forgotten", space.path).ok()
    in_order(on)


def a_reboot(on: Machine) -> None:
    """With the run directory kept: no earlier record is believed, and a late DEL touches no attachment."""
    old, _ = attached(on, "before")
    on.power_cut(wiped=False)
    on.start_daemon()
    assert on.ask("attachments") == []
    new, space = attached(on, "after")
    on.call("DEL", on.conf(), old.cid, "").ok()
    in_order(on, new)
    on.call("DEL", on.conf(), new.cid, space.path).ok()
    in_order(on)


def a_single_file_is_killed_while_it_unpacks(on: Machine) -> None:
    """What it had unpacked is swept."""
    if on.program.form != "plain":
        return
    space, delay, end = Space(on), 0.002, time.monotonic() + 20
    while not extraction_directories(on):
        assert time.monotonic() < end, "no kill left a directory"
        process = started(on, "ADD", "unpacking", space)
        time.sleep(delay)
        process.kill()
        process.communicate(timeout=5)
        delay = delay % 0.008 + 0.0007
    end = time.monotonic() + 10
    while extraction_directories(on):
        assert time.monotonic() < end, f"{extraction_directories(on)} stay\n{on.log_tail()}"
        time.sleep(0.1)
    in_order(on)


def extraction_directories(on: Machine) -> list[str]:
    """What killed single files left in the machine's temporary directory."""
    return on.inside(lambda: sorted(str(path) for path in Path("/tmp").glob("_MEI*")))


SCENES: list[Callable[[Machine], None]] = [
    a_step_fails,
    a_plugin_is_killed_in_an_add,
    a_plugin_is_killed_before_it_can_print,
    a_plugin_is_killed_after_it_printed,
    the_launcher_is_killed_anywhere,
    a_daemon_dies_in_an_add,
    a_daemon_dies_in_an_add_and_nobody_asks_again,
    a_daemon_dies_in_a_del,
    a_deletion_is_written_down,
    a_deletion_fails_in_the_daemon,
    the_run_directory_is_deleted,
    a_namespace_goes,
    the_records_are_damaged,
    a_single_file_is_killed_while_it_unpacks,
    a_reboot,
]
