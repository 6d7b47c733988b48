"""The one reader of /proc, and what a zombie is to it; the one reader of a socket's peer."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cni
from cni import proc
from cni.host import process
from cni.peer_credentials import Peer

NOBODYS = 4194304  # beyond the largest number that a process may have (kernel.pid_max)


def test_a_process_is_its_number_and_its_start():
    me = os.getpid()
    started = proc.start_time(me)
    assert started == proc.alive_since(me)
    assert proc.is_same(me, started)
    assert not proc.is_same(me, started - 1)
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
    assert 0 <= age < 86400


def test_nobody():
    assert proc.alive_since(NOBODYS) == 0
    assert not proc.is_same(NOBODYS, 0)
    for read in (proc.stat, proc.start_time, proc.command):
        with pytest.raises(OSError):
            read(NOBODYS)


def test_a_zombie_has_ended_and_is_still_the_same_process():
    program = "import sys; print('begun', flush=True); sys.stdin.read(); sys.exit(7)"
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"begun\n"
    child.stdout.close()
    started = proc.start_time(child.pid)
    assert proc.command(child.pid)[0] == os.fsencode(sys.executable)
    assert not process.is_ending(child.pid)
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and was not waited for yet
    found = proc.stat(child.pid)
    assert (found.is_zombie, found.ended, found.start_time) == (True, True, started)
    assert os.waitstatus_to_exitcode(found.exit_code) == 7
    assert proc.alive_since(child.pid) == 0
    assert proc.is_same(child.pid, started)
    assert proc.command(child.pid) == []
    assert process.is_ending(child.pid)
    assert child.wait(30) == 7
    assert not proc.is_same(child.pid, started)


def test_a_name_may_hold_anything():
    line = b"12 (a) b) Z (c) S " + b" ".join(b"%d" % n for n in range(4, 53))
    found = proc.Stat(line)
    assert (found.ended, found.start_time, found.exit_code) == (False, 22, 52)


def test_the_boot_is_named_as_the_kernel_names_it():
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", proc.boot_id())


def test_the_peer_of_a_socket():
    here, there = socket.socketpair()
    with here, there:
        peer = Peer(here)
        assert (peer.pid, peer.uid, peer.gid) == (os.getpid(), os.geteuid(), os.getegid())


READERS = {
    r"/stat\"|/stat'": {"proc.py", "plugin/client.py", "daemon/metrics/reading.py"},  # the last: its own times
    r"/cmdline": {"proc.py"},
    r"random/boot_id": {"proc.py"},
    r"\.SO_PEERCRED": {"peer_credentials.py", "plugin/client.py"},
}


@pytest.mark.parametrize("what", READERS)
def test_there_is_one_reader(what):
    """The plugin's own door has copies: a module more on the path of every call costs more than they do."""
    root = Path(cni.__file__).parent
    found = {str(path.relative_to(root)) for path in root.rglob("*.py") if re.search(what, path.read_text())}
    assert found <= READERS[what]


def test_a_process_that_a_signal_has_stopped():
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        try:
            assert not proc.is_stopped(process.pid)
            process.send_signal(signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            assert proc.is_stopped(process.pid)
        finally:
            process.kill()
