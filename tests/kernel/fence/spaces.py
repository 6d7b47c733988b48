"""Network namespaces without names or processes: they live while this process holds their descriptors.

Nothing has to be cleaned up after a crash. Sockets are opened inside and used from outside.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _in_thread(work: Callable[[], T]) -> T:
    """Run in a thread that dies afterwards: what it did to its namespace dies with it."""
    box: list[Any] = []

    def body() -> None:
        try:
            box.extend((True, work()))
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            box.extend((False, error))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    good, value = box
    if not good:
        raise value
    return value


class Space:
    """One network namespace."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.gate = ""  # of a container without a bridge: the MAC of the host end

        def unshare() -> int:
            if _libc.unshare(CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "unshare")
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

        self.fd = _in_thread(unshare)
        self.ip("link set lo up")

    def inside(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread in this namespace."""

        def enter() -> T:
            if _libc.setns(self.fd, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            return work()

        return _in_thread(enter)

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket that stays in this namespace."""
        made = self.inside(lambda: socket.socket(family, kind, protocol))
        made.setblocking(False)
        return made

    def sysctl(self, **values: object) -> None:
        """`net__ipv4__ip_forward=1` and the like; `__` is a slash."""

        def write() -> None:
            for key, value in values.items():
                Path("/proc/sys", *key.split("__")).write_text(str(value))

        self.inside(write)

    def run(self, *command: str, check: bool = True, stdin: str | None = None) -> str:
        """Run a program inside; its stdout."""

        def start() -> subprocess.CompletedProcess[str]:
            return subprocess.run(command, check=False, input=stdin, capture_output=True, text=True, timeout=30)

        done = self.inside(start)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}{done.stdout}")
        return done.stdout

    def ip(self, *lines: str) -> None:
        """`ip` commands, in one batch."""
        self.run("ip", "-batch", "-", stdin="\n".join(lines) + "\n")

    def address(self, ifname: str, *addresses: str) -> None:
        """Give an interface addresses, ready at once."""
        self.ip(*(f"addr add {a} dev {ifname}" + (" nodad" if ":" in a else "") for a in addresses))

    def close(self) -> None:
        """Let the namespace go."""
        os.close(self.fd)


def veth(a: tuple[Space, str], b: tuple[Space, str], mac: str | None = None, master: str | None = None) -> None:
    """A pair, its ends in two namespaces, `mac` on the second; only end `a` is up."""
    (here, name_a), (there, name_b) = a, b
    # `ip` finds a namespace by name or process only, so a process stands there for a moment.
    holder = there.inside(lambda: subprocess.Popen(["sleep", "60"]))
    try:
        address = f"address {mac}" if mac else ""
        of = f"master {master}" if master else ""
        here.ip(
            f"link add {name_a} type veth peer name {name_b} {address} netns {holder.pid}",
            f"link set {name_a} {of} up",
        )
    finally:
        holder.kill()
        holder.wait()
