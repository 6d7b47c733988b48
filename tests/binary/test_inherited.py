"""What a process inherits from its caller keeps neither the plugin, nor the daemon, nor the tool from working."""

import json
import os
import resource
import signal
import stat
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

from tests.binary.test_autostart import begun, daemons, ended, inside, netns

__all__ = ["ended", "inside", "netns"]
pytestmark = pytest.mark.root

LIMITS = (resource.RLIMIT_CPU, resource.RLIMIT_FSIZE)


def ignore_children():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def poor():
    """Signals are blocked, files of the owner are closed to the owner, and limits are near."""
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP})
    os.umask(0o777)
    for kind in LIMITS:
        resource.setrlimit(kind, (64 << 20, resource.getrlimit(kind)[1]))


def close(descriptors):
    for number in descriptors:
        os.close(number)


def run(program, command, given, preexec):
    return subprocess.run(
        program.argv,
        env=program.environment(command),
        input=given,
        capture_output=True,
        timeout=60,
        check=False,
        preexec_fn=preexec,
    )


def tool(program, words, preexec):
    argv = [*program.argv, *words]
    env = program.environment(None)
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False, preexec_fn=preexec)


def test_a_daemon_has_signals_limits_and_files_of_its_own(inside, run_dir, conf):
    run(inside, "STATUS", conf(autostart=True), poor)
    begun(inside, conf(autostart=True))
    (pid,) = daemons(run_dir)
    assert stat.S_IMODE(run_dir.stat().st_mode) & 0o700 == 0o700
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert int(status["SigBlk"], 16) == 0
    limits = Path(f"/proc/{pid}/limits").read_text()
    for name in ("Max cpu time", "Max file size"):
        assert next(line for line in limits.splitlines() if line.startswith(name)).split()[3] == "unlimited", limits
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + 20
    while daemons(run_dir):
        assert time.monotonic() < until, "SIGTERM does not end it"
        time.sleep(0.02)


def test_a_daemon_that_cannot_start_is_told_while_sigchld_is_ignored(inside, run_dir, conf, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "overlayd.yaml").write_text("log_level: [\n")
    until = time.monotonic() + 60
    late = "did not answer within"  # the single file extracts the daemon first
    while late in (answer := json.loads(run(inside, "STATUS", conf(autostart=True), ignore_children).stdout))["msg"]:
        assert time.monotonic() < until
    assert answer["code"] == 50 and "overlayd.yaml" in answer["msg"], answer


def test_the_exit_code_is_right_while_sigchld_is_ignored(program, run_dir, conf):
    """The kernel keeps no exit code of a child then. Without the launcher the bootloader waits for the process that
    does the work, and exits with 1: so an ADD is refused."""
    done = run(program, "ADD", conf(), ignore_children)
    answer = json.loads(done.stdout)
    if program.form == "plain":
        assert (done.returncode, answer["code"]) == (1, 4) and "SIGCHLD" in answer["msg"], answer
        return
    assert (done.returncode, answer["code"]) == (1, 11), done
    assert run(program, "VERSION", conf(), ignore_children).returncode == 0


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=["stdin", "stdout", "stderr", "all"])
def test_the_tool_works_with_closed_descriptors(program, run_dir, closed):
    for words in (["status", "--run-dir", str(run_dir)], ["doctor", "--run-dir", str(run_dir)], ["--help"]):
        usual = tool(program, words, None)
        done = tool(program, words, partial(close, closed))
        assert done.returncode == usual.returncode, (words, done)
        assert "Traceback" not in done.stderr + done.stdout, done
