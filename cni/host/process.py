"""Processes: this one's memory and environment, the identity of a PID, and the network namespace of a process."""

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
from cni.host import container, netns

INITIAL_NETNS = 0xEFFFFFF9  # the inode that kernels with fixed ones give the first network namespace (linux/nsfs.h)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/current-system/sw/bin"
KEPT = (
    *("HOME", "TZ", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"),
    *("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", container.IN_POD),  # a Pod's: API server, Node
)
OF_SOURCE = ("PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")  # kept only if the program is not frozen
_LARGE = 1 << 18  # bytes
_NET_ADMIN = 12  # CAP_NET_ADMIN (linux/capability.h)


def return_freed_memory() -> None:
    """Configure malloc to return large blocks to the kernel when they are freed.

    By default glibc raises the size from which it does so to that of the largest freed block, and keeps twice as much
    for each of its arenas: one request of 8 MiB to each thread would keep 200 MiB allocated (mallopt(3)).
    """
    with contextlib.suppress(AttributeError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)
        libc.mallopt(_M_TRIM_THRESHOLD, 4 * _LARGE)


def trim_memory() -> None:
    """Return free memory in the middle of the heap to the kernel, which many simultaneous clients leave
    (malloc_trim(3))."""
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def clean_environment(keep: Iterable[str]) -> None:
    """Reduce the environment of this process and of the programs it starts to a fixed PATH, a locale, and the variables
    in `KEPT` and `keep`. A runtime's proxies, libraries and paths do not apply to the daemon."""
    kept = {*KEPT, *keep} if getattr(sys, "frozen", False) else {*KEPT, *keep, *OF_SOURCE}
    for name in [name for name in os.environ if name not in kept]:
        del os.environ[name]
    os.environ |= {"PATH": SEARCH_PATH, "LANG": "C.UTF-8"}


def execute_again(more: dict[str, str], deputy: str) -> NoReturn:
    """Execute this process's program again, with the variables `more` added to its environment. If that fails the
    process ends with code 70 (EX_SOFTWARE), and a service manager or a plugin starts it.

    execve(2) waits until every other thread has ended, and a thread that a debugger has stopped does not end. So a
    second process is started with the additional option `deputy` and the PID of this process: see `has_restarted`.
    """
    argv = [sys.executable, *sys.argv[1:]] if getattr(sys, "frozen", False) else list(sys.orig_argv)
    env = {**os.environ, **more}
    program = argv[0] if "/" in argv[0] else sys.executable
    with contextlib.suppress(OSError):  # the second process is needed only if execve does not return
        subprocess.Popen(
            [program, *argv[1:], deputy, str(os.getpid())],
            env={name: value for name, value in env.items() if name != "NOTIFY_SOCKET"},
            start_new_session=True,
        )
    try:
        os.execve(program, argv, env)
    finally:
        os._exit(70)


def has_restarted(pid: int, patience: float) -> bool:
    """For the second process: whether the first one runs its program again after `patience` seconds. Otherwise the
    first process is killed, and the second serves in its place."""
    time.sleep(patience)
    try:
        if not proc.stat(pid).ended:
            return True
        os.kill(pid, signal.SIGKILL)
    except OSError:
        return False
    return False


def children() -> set[int]:
    """The PIDs of this process's children; empty if the kernel does not list them."""
    pids: set[int] = set()
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            pids |= set(map(int, path.read_text().split()))
    return pids


def reap(pids: set[int]) -> None:
    """Reap ended children that this program did not start itself, and remove them from `pids`."""
    for pid in list(pids):
        try:
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                continue
        except ChildProcessError:
            pass
        pids.discard(pid)


def is_ending(pid: int) -> bool:
    """Whether the process has ended, or was killed and its last threads are still leaving the kernel."""
    try:
        return not proc.command(pid)
    except OSError:
        return True


def is_daemon(pid: int) -> bool:
    """Whether the process is one of our overlay daemons, by its command line."""
    try:
        arguments = proc.command(pid)
    except OSError:
        return False
    return arguments[1:2] == [b"overlayd"] or arguments[1:4] == [b"-m", b"cni", b"overlayd"]


def end_daemon(pid: int, patience: float) -> bool:
    """End an overlay daemon by SIGTERM, and by SIGKILL after `patience` seconds; returns whether it has ended, or did
    not exist.

    A process that is not one of our overlay daemons is not touched (False).
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

    Raises OSError, with the path, if there is no such process or access is denied.
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
        os.close(fd)  # the PID was reused between the two readings
        if not Path(f"/proc/{pid}").exists():
            raise FileNotFoundError(2, "No such file or directory", f"/proc/{pid}/ns/net")


def is_hosts(namespace: netns.NetnsId) -> bool:
    """Whether a namespace is the machine's initial network namespace.

    Compared with the fixed inode (Linux 6.18 and later), with the namespace of init, and with that of kthreadd; access
    to one of the two processes may be denied.
    """
    return namespace.ino == INITIAL_NETNS or any(_netns_of(pid) == namespace for pid in (1, 2))


def has_administrator(space: netns.NetnsId) -> bool:
    """Whether a container's process in the namespace has CAP_NET_ADMIN or can gain it (capabilities(7): the bounding
    set). A process counts as a container's if its mount namespace is neither the daemon's nor the machine's; the unit
    gives the daemon its own. Reads every process."""
    hosts = {inode for pid in ("self", "1") if (inode := _mount_namespace(Path("/proc", pid)))}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, StopIteration):  # the process has ended
            if _netns_of(int(process.name)) == space and _mount_namespace(process) not in hosts:
                lines = (process / "status").read_text(errors="replace").splitlines()
                bounding = next(line.split()[1] for line in lines if line.startswith("CapBnd:"))
                if int(bounding, 16) >> _NET_ADMIN & 1:
                    return True
    return False


def _mount_namespace(process: Path) -> int:
    """The inode of the mount namespace of `/proc/PID`; 0 if it cannot be read."""
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
