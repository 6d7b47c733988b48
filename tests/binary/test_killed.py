"""A killed plugin is dead: nothing goes on for a runtime that has given up, and nothing stays of it.

A runtime kills the process that it started. In the single file without the launcher that is the bootloader, whose child
does the work.
"""

import fcntl
import os
import shutil
import signal
import sys
import termios
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from cni import tempdir_sweeper
from tests.binary.conftest import program_of
from tests.binary.fake_door import answer, hang, opened


def descendants(pid: int) -> list[int]:
    """The processes below `pid`, itself included."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # a thread that has ended meanwhile
            for child in task.read_text().split():
                found += descendants(int(child))
    return found


def users(temporary: Path) -> list[int]:
    """The processes that were given this temporary directory, with any parent."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if b"TMPDIR=%s\0" % os.fsencode(temporary) in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(condition, seconds: float = 30.0) -> float:
    """How long it took; fails after `seconds`."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds, "it never happened"
        time.sleep(0.001)
    return time.monotonic() - begun


def test_a_kill_during_the_call_is_a_hang_up(program, run_dir, conf):
    committed, decide = threading.Event(), threading.Event()

    def attach(request):
        decide.wait(60)
        if not request.hung_up.is_set():
            committed.set()
        return answer()

    with opened(run_dir, attach) as door:
        process = program.start("ADD", conf())
        assert door.arrived.acquire(timeout=60)
        everyone = descendants(process.pid)
        assert len(everyone) == (2 if program.form == "plain" else 1)
        process.kill()
        assert door.requests[0].hung_up.wait(30)
        decide.set()
        process.wait()
        wait_until(lambda: not any(alive(pid) for pid in everyone))
        time.sleep(0.05)
        assert not committed.is_set()
        assert len(door.requests) == 1


@pytest.mark.parametrize("delay", [0.0, 0.002, 0.005, 0.008, 0.011, 0.014, 0.017, 0.02, 0.025, 0.03])
def test_a_kill_at_any_moment_leaves_no_process_and_next_to_no_directory(temporary, run_dir, conf, delay):
    """Killed while it unpacks, the bootloader has no child yet that could tidy up; the daemon's sweep does then."""
    program = program_of("plain", temporary)
    waiting = threading.Event()
    with opened(run_dir, lambda _: hang(waiting)):
        process = program.start("ADD", conf())
        time.sleep(delay)
        process.kill()
        process.communicate()
        wait_until(lambda: not users(temporary))
        waiting.set()
    for directory in temporary.iterdir():
        os.utime(directory, (time.time() - 60, time.time() - 60))
    tempdir_sweeper.sweep((str(temporary),))
    assert list(temporary.iterdir()) == []


def test_a_kill_just_after_the_fork_leaves_no_child_waiting(temporary, run_dir, conf):
    """PyInstaller's child waits for a word of its bootloader before it begins; one that is dead never gives it."""
    program = program_of("plain", temporary)
    waiting = threading.Event()
    with opened(run_dir, lambda _: hang(waiting)):
        for _ in range(20):
            process = program.start("ADD", conf())
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            while not (found := children.read_text().split()):
                assert process.poll() is None
            process.kill()
            process.communicate(timeout=30)  # its pipes are the child's too
            wait_until(lambda found=found: not any(alive(int(pid)) for pid in found))
        waiting.set()
    for directory in temporary.iterdir():
        shutil.rmtree(directory)  # who is killed before Python starts leaves it to the daemon's sweep


def unread(pipe: int) -> int:
    """How many bytes are in a pipe."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_a_kill_while_it_waits_for_stdin(temporary):
    program = program_of("plain", temporary)
    reader, writer = os.pipe()
    process = program.start("ADD", b"", stdin=reader)
    os.write(writer, b" ")
    wait_until(lambda: unread(reader) == 0)  # the plugin reads, and goes on reading
    _, child = descendants(process.pid)
    process.kill()
    process.communicate()
    wait_until(lambda: not alive(child))
    assert list(temporary.iterdir()) == []
    os.close(reader)
    os.close(writer)


def test_a_polite_end_leaves_nothing_either(temporary, run_dir, conf):
    program = program_of("plain", temporary)
    waiting = threading.Event()
    with opened(run_dir, lambda _: hang(waiting)) as door:
        process = program.start("ADD", conf())
        assert door.arrived.acquire(timeout=60)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        assert door.requests[0].hung_up.wait(30)
        waiting.set()
    assert list(temporary.iterdir()) == []


class TestSweep:
    """What may be swept, and what must stay."""

    @pytest.fixture
    def directory(self, tmp_path):
        def make(name: str, *files: str, age: float = 60) -> Path:
            path = tmp_path / name
            path.mkdir()
            for file in files:
                (path / file).touch()
            os.utime(path, (time.time() - age, time.time() - age))
            return path

        return make

    DEAD = "_MEI7fffffffabcdef"  # no process has that number

    def test_ours(self, directory, tmp_path):
        path = directory(self.DEAD, tempdir_sweeper.MARK, tempdir_sweeper.LAST, "libpython3.11.so.1.0")
        assert tempdir_sweeper.sweep((str(tmp_path),)) == [str(path)]
        assert not path.exists()
        assert tempdir_sweeper.sweep((str(tmp_path),)) == []

    def test_half_unpacked(self, directory, tmp_path):
        path = directory(self.DEAD, "libexpat.so.1")
        tempdir_sweeper.sweep((str(tmp_path),))
        assert not path.exists()

    def test_another_programs_stays(self, directory, tmp_path):
        path = directory(self.DEAD, tempdir_sweeper.LAST, "libpython3.11.so.1.0")
        tempdir_sweeper.sweep((str(tmp_path),))
        assert path.exists()

    def test_a_fresh_one_stays(self, directory, tmp_path):
        path = directory(self.DEAD, tempdir_sweeper.MARK, age=1)
        tempdir_sweeper.sweep((str(tmp_path),))
        assert path.exists()

    def test_a_living_bootloaders_stays(self, directory, tmp_path):
        path = directory(f"_MEI{os.getpid():08x}abcdef", tempdir_sweeper.MARK, age=0)
        os.utime(path, (time.time(), time.time()))
        tempdir_sweeper._YOUNGEST, before = -1.0, tempdir_sweeper._YOUNGEST
        try:
            tempdir_sweeper.sweep((str(tmp_path),))
        finally:
            tempdir_sweeper._YOUNGEST = before
        assert path.exists()

    def test_the_number_of_a_later_process_does_not_protect(self, directory, tmp_path):
        path = directory(f"_MEI{os.getpid():08x}abcdef", tempdir_sweeper.MARK, age=86400 * 365)
        tempdir_sweeper.sweep((str(tmp_path),))
        assert not path.exists()

    def test_other_names_stay(self, directory, tmp_path):
        path = directory("_MEIxyz", tempdir_sweeper.MARK)
        tempdir_sweeper.sweep((str(tmp_path),))
        assert path.exists()


def test_a_file_replaced_while_it_starts_is_no_death(temporary, run_dir, conf, tmp_path):
    """An upgrade by rename under a hundred calls (conformance P9, F11): none of them may take itself for an orphan."""
    program = program_of("plain", temporary)
    original = Path(program.argv[0])
    program.argv = [str(tmp_path / "zlayer-cni")]
    shutil.copy(original, program.argv[0])
    stop = threading.Event()

    def replace():
        while not stop.is_set():
            shutil.copy(original, tmp_path / "next")
            (tmp_path / "next").rename(program.argv[0])

    replacing = threading.Thread(target=replace)
    replacing.start()
    try:
        with opened(run_dir, lambda _: answer(0, b"{}\n")):
            done = [program.run("ADD", conf()) for _ in range(20)]
    finally:
        stop.set()
        replacing.join()
    assert {(each.returncode, each.stdout) for each in done} == {(0, b"{}\n")}, done
