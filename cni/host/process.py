"""Processes as the kernel knows them: who a PID is now, and the network namespace it lives in."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from cni import proc
from cni.host import netns

INITIAL_NETNS = 0xEFFFFFF9  # the inode that kernels with fixed ones give the first network namespace (linux/nsfs.h)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/current-system/sw/bin"
KEPT = ("HOME", "TZ", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
OF_SOURCE = ("PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")  # where the program is not frozen
_LARGE = 1 << 18  # bytes
_NET_ADMIN = 12  # CAP_NET_ADMIN (linux/capability.h)


def give_memory_back() -> None:
    """From now on large blocks go back to the kernel when they are freed.

    By itself glibc raises the size from which it does so to that of the largest block it has seen, and keeps twice as
    much for each of its arenas: one request of 8 MiB to each thread would stay with us as 200 MiB (mallopt(3)).
    """
    with contextlib.suppress(AttributeError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)
        libc.mallopt(_M_TRIM_THRESHOLD, 4 * _LARGE)


def trim_memory() -> None:
    """Give back what lies free in the middle of the heap, as a crowd of clients leaves it (malloc_trim(3))."""
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def clean_environment(keep: Iterable[str]) -> None:
    """This process, and what it starts, has an environment of its own from now on: a fixed PATH, a locale, and of what
    it was given the variables of `KEPT` and `keep`. A runtime's proxies, libraries and paths are none of ours."""
    kept = {*KEPT, *keep} if getattr(sys, "frozen", False) else {*KEPT, *keep, *OF_SOURCE}
    for name in [name for name in os.environ if name not in kept]:
        del os.environ[name]
    os.environ |= {"PATH": SEARCH_PATH, "LANG": "C.UTF-8"}


def execute_again(more: dict[str, str], deputy: str) -> NoReturn:
    """Run this process's program from its beginning, with `more` in its environment. Where that fails the process ends
    with code 70 (EX_SOFTWARE), for a service manager or a plugin to start it.

    execve(2) waits for every other thread to be gone, and one that a debugger holds is not. So a second process is
    started with the further option `deputy` and this process's id: see `came_back`.
    """
    words = [sys.executable, *sys.argv[1:]] if getattr(sys, "frozen", False) else list(sys.orig_argv)
    env = {**os.environ, **more}
    program = words[0] if "/" in words[0] else sys.executable
    with contextlib.suppress(OSError):  # the deputy is there for the worst case only
        subprocess.Popen(
            [program, *words[1:], deputy, str(os.getpid())],
            env={name: value for name, value in env.items() if name != "NOTIFY_SOCKET"},
            start_new_session=True,
        )
    try:
        os.execve(program, words, env)
    finally:
        os._exit(70)


def came_back(pid: int, patience: float) -> bool:
    """For the second process: whether the first runs its program again, `patience` seconds later. If not it is killed,
    and this process serves in its place."""
    time.sleep(patience)
    try:
        if not proc.stat(pid).ended:
            return True
        os.kill(pid, signal.SIGKILL)
    except OSError:
        return False
    return False


def children() -> set[int]:
    """The processes that are this one's children now; empty where the kernel does not say."""
    found: set[int] = set()
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found |= set(map(int, path.read_text().split()))
    return found


def reap(pids: set[int]) -> None:
    """Take note of the end of children that this program did not start itself; those that have ended leave `pids`."""
    for pid in list(pids):
        try:
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                continue
        except ChildProcessError:
            pass
        pids.discard(pid)


def is_ending(pid: int) -> bool:
    """Whether the process has been killed and only its last threads are still on their way out of the kernel."""
    try:
        return not proc.command(pid)
    except OSError:
        return True


def is_daemon(pid: int) -> bool:
    """Whether the process is an overlay daemon of ours, by its command line."""
    try:
        words = proc.command(pid)
    except OSError:
        return False
    return words[1:2] == [b"overlayd"] or words[1:4] == [b"-m", b"cni", b"overlayd"]


def end_daemon(pid: int, patience: float) -> bool:
    """End that overlay daemon: asked to, and killed after `patience` seconds. Whether it has ended, or was not there.

    What is no overlay daemon of ours is left alone (False).
    """
    try:
        fd = os.pidfd_open(pid)
    except (OSError, ValueError):
        return not Path(f"/proc/{pid}").exists()
    try:
        if not is_daemon(pid):
            return is_ending(pid)
        for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, number)
            if select.select([fd], [], [], seconds)[0]:
                return True
        return False
    finally:
        os.close(fd)


def open_netns(pid: int) -> tuple[int, int]:
    """(descriptor of the process's network namespace, the process's start time). The caller closes the descriptor.

    Raises OSError, with the path, if there is no such process or it may not be looked at.
    """
    while True:
        began = proc.start_time(pid)
        fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if proc.is_same(pid, began):
                netns.identify(fd)
                return fd, began
        except OSError:
            os.close(fd)
            raise
        os.close(fd)  # the PID changed hands between the two looks
        if not Path(f"/proc/{pid}").exists():
            raise FileNotFoundError(2, "No such file or directory", f"/proc/{pid}/ns/net")


def is_hosts(found: netns.NetnsId) -> bool:
    """Whether a namespace is the machine's own: the one it booted with, as far as this kernel tells.

    Told by its fixed inode (Linux 6.18 and later), by init and by kthreadd; one or the other may not be looked at.
    """
    return found.ino == INITIAL_NETNS or any(_netns_of(pid) == found for pid in (1, 2))


def has_administrator(space: netns.NetnsId) -> bool:
    """Whether a container's process in the namespace has CAP_NET_ADMIN or may get it (capabilities(7): the bounding
    set). A container's is one with a mount namespace other than ours and the machine's: the unit gives the daemon
    one of its own. Looks at every process."""
    hosts = {inode for pid in ("self", "1") if (inode := _mount_namespace(Path("/proc", pid)))}
    for found in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, StopIteration):  # it has ended
            if _netns_of(int(found.name)) == space and _mount_namespace(found) not in hosts:
                lines = (found / "status").read_text(errors="replace").splitlines()
                bounding = next(line.split()[1] for line in lines if line.startswith("CapBnd:"))
                if int(bounding, 16) >> _NET_ADMIN & 1:
                    return True
    return False


def _mount_namespace(process: Path) -> int:
    """The inode of the mount namespace of `/proc/PID`; 0 if it cannot be seen."""
    try:
        return (process / "ns/mnt").stat().st_ino
    except OSError:
        return 0


def _netns_of(pid: int) -> netns.NetnsId | None:
    try:
        status = Path(f"/proc/{pid}/ns/net").stat()
    except OSError:
        return None
    return netns.NetnsId(status.st_dev, status.st_ino)
