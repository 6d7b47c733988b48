"""Opening what a runtime calls a network namespace: never hangs, never pokes, and says what is wrong."""

import contextlib
import errno
import gc
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cni.host import netns

pytestmark = pytest.mark.root
PATIENCE = 30.0  # seconds within which every answer must be there


def descriptors():
    """How many this process has open. What an earlier test left to the collector is gone first."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def opened(path):
    """open_path in a thread that may hang without taking the tests with it; returns its answer or raises its error."""
    box = []

    def work():
        try:
            box.append(netns.open_path(str(path)))
        except OSError as error:
            box.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert box, f"opening {path} hangs"
    if isinstance(box[0], OSError):
        raise box[0]
    os.close(box[0])
    return True


def refusal(path):
    before = descriptors()
    with pytest.raises(OSError) as caught:
        opened(path)
    assert descriptors() == before, "a descriptor was left open"
    return caught.value.errno


def fifo(where):
    os.mkfifo(where / "x")
    return where / "x"


def plain(where):
    (where / "x").write_text("not a namespace")
    return where / "x"


def dangling(where):
    (where / "x").symlink_to(where / "nothing")
    return where / "x"


def listening(where):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(where / "x"))
    return where / "x"


def loop(where):
    (where / "x").symlink_to(where / "x")
    return where / "x"


def below_a_file(where):
    return plain(where) / "y"


def missing(where):
    return where / "x"


def own_directory(where):
    return where


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (fifo, errno.EINVAL),
        (plain, errno.EINVAL),
        (own_directory, errno.EINVAL),
        (listening, errno.EINVAL),
        (dangling, errno.ENOENT),
        (missing, errno.ENOENT),
        (loop, errno.ELOOP),
        (below_a_file, errno.ENOTDIR),
    ],
)
def test_a_path_that_is_none(tmp_path, make, code):
    assert refusal(make(tmp_path)) == code


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "/dev/tty", "/dev/ptmx", "/dev/full", "/dev/watchdog"])
def test_a_device_is_not_even_opened(path):
    if not Path(path).exists():
        pytest.skip(f"no {path} here")
    assert refusal(path) == errno.EINVAL


@pytest.mark.parametrize("kind", ["mnt", "pid", "uts", "ipc", "user", "cgroup"])
def test_a_namespace_of_another_kind(kind):
    assert refusal(f"/proc/self/ns/{kind}") == errno.EINVAL


@pytest.mark.parametrize("path", ["/proc/self/status", "/proc/kmsg", "/proc/self/mem", "/sys/kernel/notes", ""])
def test_a_special_file(path):
    assert refusal(path) in (errno.EINVAL, errno.EACCES, errno.ENOENT)


def test_a_path_with_a_nul_is_an_error_too():
    with pytest.raises((OSError, ValueError)):
        netns.open_path("/run/net\0ns")


def test_a_process_that_is_gone():
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    assert refusal(f"/proc/{gone.pid}/ns/net") == errno.ENOENT


def test_a_mount_point_that_lost_its_namespace(container):
    subprocess.run(["umount", "-l", container.path], check=True)
    assert refusal(container.path) == errno.EINVAL


def test_a_namespace_by_any_of_its_paths_is_the_same(container):
    with subprocess.Popen(["nsenter", f"--net={container.path}", "sleep", "60"]) as holder:
        try:
            fd = netns.open_path(container.path)
            expected = netns.identify(fd)
            os.close(fd)
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:  # until it is inside
                fd = netns.open_path(f"/proc/{holder.pid}/ns/net")
                found = netns.identify(fd)
                os.close(fd)
                if found == expected:
                    break
            assert found == expected != netns.own()
        finally:
            holder.kill()


def test_what_is_no_namespace_has_no_identity(tmp_path):
    with (tmp_path / "x").open("w") as file, pytest.raises(OSError) as caught:
        netns.identify(file.fileno())
    assert caught.value.errno == errno.EINVAL


# --- being inside ---


def test_a_thread_comes_home(container):
    home = netns.own()
    with netns.entered(container.fd):
        assert netns.own() == netns.identify(container.fd) != home
    assert netns.own() == home


def test_a_thread_comes_home_from_an_error(container):
    home = netns.own()
    with contextlib.suppress(ZeroDivisionError), netns.entered(container.fd):
        _ = 1 / 0
    assert netns.own() == home


def test_only_the_one_thread_goes(container):
    home, seen, entered = netns.own(), [], threading.Event()

    def look():  # a thread of before: one that is started inside begins there
        entered.wait(PATIENCE)
        seen.append(netns.own())

    other = threading.Thread(target=look)
    other.start()
    with netns.entered(container.fd):
        entered.set()
        other.join()
    assert seen == [home]


def test_one_inside_the_other(host, container):
    home = netns.own()
    with netns.entered(host.fd):
        with netns.entered(container.fd):
            assert netns.own() == netns.identify(container.fd)
        assert netns.own() == netns.identify(host.fd)
    assert netns.own() == home


def test_what_cannot_be_entered_is_an_error_and_leaves_nothing_open(tmp_path):
    home, before = netns.own(), descriptors()
    with (tmp_path / "x").open("w") as file, pytest.raises(OSError) as caught, netns.entered(file.fileno()):
        pass
    assert caught.value.errno == errno.EINVAL
    assert (netns.own(), descriptors()) == (home, before)


def test_a_thread_that_cannot_come_home_takes_the_process_with_it(container):
    script = """
import os, sys
from cni.host import netns
setns, calls = netns._setns, []
def refuse(fd):
    calls.append(fd)
    if len(calls) > 1:
        raise OSError(1, "no")
    setns(fd)
netns._setns = refuse
with netns.entered(os.open(sys.argv[1], os.O_RDONLY)):
    pass
"""
    done = subprocess.run([sys.executable, "-c", script, container.path], check=False, timeout=30)
    assert done.returncode == netns.LOST_THREAD
