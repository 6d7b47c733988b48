"""The first call of a node starts the daemon, once, and goes on; with the real daemon."""

import json
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from cni.plugin import delete_queue
from tests.binary.fake_door import Program

pytestmark = pytest.mark.root

RUNTIME = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "CNI_PATH": "/opt/cni/bin",
    "NOTIFY_SOCKET": "/run/systemd/notify",
    "INVOCATION_ID": "containerd's",
    "LISTEN_FDS": "1",
    "LD_LIBRARY_PATH": "/opt/runtime/lib",
    "TRACEPARENT": "00-ab-cd-01",
}


@pytest.fixture
def netns():
    name = f"zlt-start-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield name
    subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture
def inside(program, netns):
    """The program, as a runtime in the scratch namespace runs it."""
    return Program(program.form, ["nsenter", f"--net=/run/netns/{netns}", *program.argv], program.env | RUNTIME)


def daemons(run_dir: Path) -> list[int]:
    """The processes that run as the daemon of `run_dir`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"overlayd" in words and os.fsencode(run_dir) in words:
            found.append(int(path.parent.name))
    return found


@pytest.fixture(autouse=True)
def ended(run_dir):
    yield
    for pid in daemons(run_dir):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + 30
    while daemons(run_dir):
        assert time.monotonic() < until, "the daemon does not end"
        time.sleep(0.02)


def begun(inside: Program, given: bytes) -> None:
    """A daemon runs, started by a STATUS or found by the next: on a busy machine one may be answered too late."""
    until = time.monotonic() + 60
    while (done := inside.run("STATUS", given)).returncode:
        assert json.loads(done.stdout)["code"] == 50, done
        assert "did not answer within" in json.loads(done.stdout)["msg"], done
        assert time.monotonic() < until, done


def test_thirty_plugins_start_one_daemon(inside, run_dir, conf):
    commands = ["STATUS", "DEL", "GC"] * 10
    with ThreadPoolExecutor(30) as pool:
        done = list(pool.map(lambda command: inside.run(command, conf(autostart=True), CNI_NETNS=""), commands))
    for command, each in zip(commands, done, strict=True):
        if command == "STATUS" and each.returncode:
            assert json.loads(each.stdout)["code"] == 50  # Not within its two seconds, on a busy machine.
        else:
            assert (each.returncode, each.stdout) == (0, b""), (command, each)
    assert len(daemons(run_dir)) == 1
    log = (run_dir / "overlayd.log").read_text()
    assert log.count(" serves ") == 1, log


def test_the_daemon_is_nobodys_child_and_holds_nothing_of_the_call(inside, run_dir, conf, netns, tmp_path):
    reader, writer = os.pipe()
    stray = os.open(tmp_path / "stray", os.O_RDWR | os.O_CREAT)
    process = inside.start("GC", conf(autostart=True), pass_fds=(stray, writer))
    os.close(writer)
    out, err = process.communicate(timeout=60)  # Would hang if the daemon held the runtime's pipes.
    assert (process.returncode, out, err) == (0, b"", b"")
    assert os.read(reader, 1) == b""
    (pid,) = daemons(run_dir)
    proc = Path(f"/proc/{pid}")
    assert os.getsid(pid) == os.getpgid(pid) == pid
    assert (proc / "cwd").readlink() == Path("/")
    assert not {str(path.readlink()) for path in (proc / "fd").iterdir()} & {str(tmp_path / "stray")}
    assert (proc / "ns/net").stat().st_ino == Path(f"/run/netns/{netns}").stat().st_ino
    assert [(proc / f"fd/{fd}").readlink() for fd in (0, 1, 2)] == [
        Path("/dev/null"),
        run_dir / "overlayd.log",
        run_dir / "overlayd.log",
    ]
    names = {pair.split(b"=")[0].decode() for pair in (proc / "environ").read_bytes().split(b"\0") if pair}
    assert not {n for n in names if n.startswith("CNI_")} | (names & {"NOTIFY_SOCKET", "INVOCATION_ID", "LISTEN_FDS"})
    words = (proc / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    at = words.index(b"overlayd")
    assert words[at:] == [os.fsencode(w) for w in ("overlayd", "--run-dir", run_dir, "--data-dir", tmp_path / "data")]
    os.close(reader)
    os.close(stray)


def test_a_daemon_that_was_killed_is_started_again(inside, run_dir, conf):
    begun(inside, conf(autostart=True))
    (first,) = daemons(run_dir)
    os.kill(first, signal.SIGKILL)
    begun(inside, conf(autostart=True))
    (second,) = daemons(run_dir)
    assert first != second


def test_a_queued_deletion_is_drained_by_the_daemon_that_comes(inside, run_dir, conf):
    assert inside.run("DEL", conf(), CNI_NETNS="").returncode == 0
    assert len(delete_queue.names(str(run_dir))) == 1
    begun(inside, conf(autostart=True))
    assert delete_queue.names(str(run_dir)) == []


def test_a_daemon_that_cannot_start_is_told_once_and_to_all(inside, run_dir, conf, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "overlayd.yaml").write_text("no_such_key: 1\n")
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda _: inside.run("ADD", conf(autostart=True)), range(8)))
    for each in done:
        said = json.loads(each.stdout)
        assert (each.returncode, said["code"]) == (1, 11)
        assert "no_such_key" in said["msg"], said
        assert str(run_dir / "overlayd.log") in said["msg"]
    assert json.loads(inside.run("STATUS", conf(autostart=True)).stdout)["code"] == 50
    assert inside.run("DEL", conf(autostart=True), CNI_NETNS="").returncode == 0
    assert len(delete_queue.names(str(run_dir))) == 1


def test_a_run_directory_that_cannot_be_made(inside, run_dir, conf):
    run_dir.write_text("a file")
    said = json.loads(inside.run("ADD", conf(autostart=True)).stdout)
    assert said["code"] == 11
    assert str(run_dir) in said["msg"]
    run_dir.unlink()


def test_another_daemon_starting_is_waited_for(inside, run_dir, conf):
    """A plugin that started one and was killed: the next waits for it instead of starting a second."""
    begun(inside, conf(autostart=True))
    (pid,) = daemons(run_dir)
    os.kill(pid, signal.SIGSTOP)
    (run_dir / "cni.sock").rename(run_dir / "hidden.sock")
    try:
        process = inside.start("CHECK", conf(autostart=True, prevResult={"cniVersion": "1.1.0", "ips": []}))
        time.sleep(0.5)
        assert daemons(run_dir) == [pid]
        (run_dir / "hidden.sock").rename(run_dir / "cni.sock")
    finally:
        os.kill(pid, signal.SIGCONT)
    process.communicate(timeout=60)
    assert daemons(run_dir) == [pid]


def test_the_log_of_an_autostarted_daemon_is_bounded(inside, run_dir, conf, tmp_path):
    """By the daemon while it runs, and by the plugin if no daemon gets that far."""
    run_dir.mkdir()
    log, earlier = run_dir / "overlayd.log", run_dir / "overlayd.log.1"
    log.write_text("an earlier line\n" * (3 << 16))  # 3 MiB
    begun(inside, conf(autostart=True))
    assert log.stat().st_size < 1 << 20 and earlier.stat().st_size <= 1 << 20
    with log.open("a") as file:
        file.write("a line of today\n" * (1 << 16))
    (pid,) = daemons(run_dir)
    os.kill(pid, signal.SIGTERM)  # its last record goes to the log
    until = time.monotonic() + 20
    while daemons(run_dir):
        assert time.monotonic() < until
        time.sleep(0.02)
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data" / "overlayd.yaml").write_text("log_level: [\n")
    with log.open("a") as file:
        file.write("a line of today\n" * (1 << 16))
    assert json.loads(inside.run("STATUS", conf(autostart=True)).stdout)["code"] == 50
    assert log.stat().st_size < 1 << 20
    assert "a line of today" in earlier.read_text()
