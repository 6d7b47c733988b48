"""Network namespaces for tests: made, entered by threads that die afterwards, swept when a run was killed.

A namespace is a bind mount below /run/netns, as `ip netns` makes them. Nothing here ever enters a namespace in
the main thread: a thread that has called setns never comes back to the pool.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

RUN_NETNS = Path("/run/netns")
CLONE_NEWNET = 0x40000000
MS_BIND = 4096
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def _must(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread of its own and hand back what it returns or raises."""
    box: dict[str, Any] = {}

    def body() -> None:
        try:
            box["value"] = work()
        except BaseException as error:  # noqa: BLE001 - carried to the caller's thread as it is
            box["error"] = error

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if "error" in box:
        raise box["error"]
    value: T = box["value"]
    return value


def enter(path: str | Path) -> None:
    """Move the calling thread into the namespace at `path`. Only for threads that end soon."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _must(_libc.setns(fd, CLONE_NEWNET), f"setns {path}")
    finally:
        os.close(fd)


def inside(path: str | Path, work: Callable[[], T]) -> T:
    """Run `work` inside the namespace at `path`. Children that it starts live there too."""

    def body() -> T:
        enter(path)
        return work()

    return in_thread(body)


def make(name: str) -> Path:
    """A new, empty namespace, bind-mounted at /run/netns/`name`."""
    RUN_NETNS.mkdir(mode=0o755, parents=True, exist_ok=True)
    path = RUN_NETNS / name
    path.touch(mode=0o600, exist_ok=False)

    def body() -> None:
        _must(_libc.unshare(CLONE_NEWNET), "unshare")
        source = f"/proc/self/task/{threading.get_native_id()}/ns/net".encode()
        _must(_libc.mount(source, str(path).encode(), b"none", MS_BIND, None), f"mount {path}")

    try:
        in_thread(body)
    except OSError:
        path.unlink()
        raise
    return path


def unmount(path: Path) -> None:
    """Detach whatever is mounted at `path`; nothing mounted is fine."""
    while _libc.umount2(str(path).encode(), MNT_DETACH) == 0:
        pass


def delete(path: Path) -> None:
    """The namespace's name goes; the namespace itself follows when nothing holds it any more."""
    unmount(path)
    path.unlink(missing_ok=True)


def identity(path: str | Path) -> tuple[int, int]:
    """Device and inode: two paths with the same identity are the same namespace."""
    status = Path(path).stat()
    return status.st_dev, status.st_ino


def processes_in(path: str | Path) -> dict[int, str]:
    """The processes whose main thread is in the namespace at `path`, with their command lines."""
    wanted = identity(path)
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        # A process may end, or refuse (kernel threads, pid 1), while we look at it.
        with contextlib.suppress(OSError):
            if identity(entry / "ns/net") == wanted and (pid := int(entry.name)) != os.getpid():
                words = (entry / "cmdline").read_bytes().split(b"\0")
                found[pid] = b" ".join(words).decode(errors="replace").strip()
    return found


def end_processes(paths: Iterable[Path], patience: float = 20.0) -> list[str]:
    """End what runs in these namespaces (which tests made): SIGTERM, then SIGKILL. Returns who needed the latter."""
    alive = list(_alive_in(paths))
    for pid, _ in alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + patience
    while alive and time.monotonic() < deadline:
        time.sleep(0.02)
        alive = list(_alive_in(paths))
    for pid, _ in alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return [command for _, command in alive]


def _alive_in(paths: Iterable[Path]) -> Iterator[tuple[int, str]]:
    for path in paths:
        with contextlib.suppress(OSError):
            yield from processes_in(path).items()


class Holder:
    """A process that sleeps in a namespace, so that there is a /proc/PID/ns/net."""

    def __init__(self, path: Path) -> None:
        self._process = inside(path, lambda: subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL))
        self.pid = self._process.pid

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
