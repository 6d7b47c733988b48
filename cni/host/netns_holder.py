"""Holder processes: each keeps one temporary network namespace alive, and has the PID that ZLayer's daemon requires.

A holder must use little memory, outlive the plugin that started it and restarts of the runtime, keep none of the
runtime's pipes open (a runtime that reads a pipe to its end would wait forever), and be distinguishable from a later
process with the same PID. So it is a forked child in its own session that executes a program of a few instructions from
memory: nothing has to be installed, and no file of ours stays in use. It uses 12 kB of memory; a waiting Python uses
14 MB.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import select
import signal
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from cni import proc
from cni.host import privileges
from cni.host.netns import CLONE_NEWNET

PATIENCE = 2.0  # seconds in which a killed process must end
_CONTROL_GROUPS = ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified")  # version 2, 1, both
_OOM_SCORE = b"-998"  # the score of Kubernetes' pause container: the container's interface is lost with this process

# An endless loop of pause(), in machine code.
_CODE = {
    "x86_64": (62, bytes.fromhex("b822000000" "0f05" "ebf7")),  # mov eax, pause; syscall; jmp -9
    "aarch64": (183, struct.pack(  # ppoll(0, 0, 0, 0): aarch64 has no pause
        "<7I", 0xD2800000, 0xD2800001, 0xD2800002, 0xD2800003, 0xD2800928, 0xD4000001, 0x17FFFFFA)),
}  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Process:
    """The identity of a process: PID and start time (field 22 of /proc/PID/stat, clock ticks since the boot)."""

    pid: int
    start_time: int


def start(title: str, save: Callable[[Process], None]) -> Process:
    """Start a holder in a new network namespace; `title` is its command line, as shown by ps.

    `save` is called with the process before the holder detaches: if `save` raises, or this process ends, the holder
    ends too. Raises OSError if the holder cannot be started.
    """
    ready, ready_end = os.pipe2(os.O_CLOEXEC)
    go_end, go = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _child(title, ready_end, go_end)
    os.close(ready_end)
    os.close(go_end)
    try:
        report = os.read(ready, 512)
        if report != b"+":
            raise OSError(f"cannot make a holder process: {report.decode(errors='replace') or 'it died'}")
        holder = Process(pid, proc.alive_since(pid))
        save(holder)
        os.write(go, b"+")
        os.read(ready, 1)  # the holder's end of the pipe closes at its execve
    except BaseException:
        os.close(go)
        go = -1
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        raise
    finally:
        os.close(ready)
        if go >= 0:
            os.close(go)
    return holder


def is_alive(process: Process) -> bool:
    """Whether this process, and not a later one with the same PID, is alive."""
    return process.start_time != 0 and proc.alive_since(process.pid) == process.start_time


def end(process: Process) -> bool:
    """End the process; False if there was none. A later process with the same PID is not touched.

    Raises OSError if the process cannot be ended.
    """
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if not is_alive(process):  # checked after the pidfd was opened, which always names one process
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        if not poll.poll(PATIENCE * 1000):
            raise TimeoutError(f"process {process.pid} does not end")
    finally:
        os.close(handle)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)
    return True


def netns_path(process: Process) -> str:
    """The path of the process's namespace, valid while the process is alive."""
    return f"/proc/{process.pid}/ns/net"


def _child(title: str, ready: int, go: int) -> NoReturn:
    """The code of the holder. No code of the plugin may run after it in this process: no exit handlers, no
    exceptions."""
    try:
        try:
            os.setsid()
            if _libc.unshare(CLONE_NEWNET) != 0:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))
            os.chdir("/")
            _leave_control_group()
            program = _program()
            _spare_from_oom()
            _close_descriptors({ready, go, program})
        except OSError as error:
            os.write(ready, f"{error}".encode())
            os._exit(1)
        os.write(ready, b"+")
        if os.read(go, 1) != b"+":
            os._exit(0)  # the plugin has ended, or does not need the holder
        os.close(go)
        _drop_privileges()
        with contextlib.suppress(OSError):
            os.execve(program, [title], {})
        os.closerange(3, max(ready, program) + 1)
        while True:  # no program for this architecture, or no execution from memory: uses more memory only
            signal.pause()
    finally:
        os._exit(1)


def _close_descriptors(keep: set[int]) -> None:
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - only the names are needed
        if int(name) > 2 and int(name) not in keep:
            with contextlib.suppress(OSError):  # the descriptor of the listing itself
                os.close(int(name))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _leave_control_group() -> None:
    """Move this process from the runtime's control group into systemd's own or the root group: a service manager that
    restarts the runtime ends all processes of the runtime's group (as with CRI-O's unit), and the holder must outlive
    the restart."""
    for tree in _CONTROL_GROUPS:
        for group in ("init.scope", "."):
            try:
                procs = os.open(f"{tree}/{group}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                os.write(procs, b"0")  # 0 names the writing process
                break
            except OSError:
                continue  # a group inside a container that has child groups and so accepts no processes
            finally:
                os.close(procs)


def _spare_from_oom() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_bytes(_OOM_SCORE)


def _drop_privileges() -> None:
    """Drop all capabilities for the program to execute: it needs none, and a daemon with few capabilities cannot open
    the namespace of a process that has more (contract 5.3/30)."""
    with contextlib.suppress(OSError):
        privileges.lower(())


def _program() -> int:
    """A descriptor of the program, or of an empty file if there is none for this architecture."""
    fd = os.memfd_create("zlayer-cni-holder", os.MFD_CLOEXEC)
    machine, code = _CODE.get(platform.machine(), (0, b""))
    if code:
        os.write(fd, _elf(machine, code))
    return fd


def _elf(machine: int, code: bytes) -> bytes:
    """A minimal ELF file: one segment to read and execute, and a stack that is not executable."""
    base, head, entry_size, align = 0x400000, 64, 56, 0x10000
    entry = head + 2 * entry_size
    size = entry + len(code)
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header = struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, base + entry, head, 0, 0, head, entry_size, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, align)
    stack = struct.pack("<IIQQQQQQ", 0x6474E551, 6, 0, 0, 0, 0, 0, 16)
    return ident + header + load + stack + code
