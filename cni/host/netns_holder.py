"""Holder processes: each keeps one scratch network namespace alive, and is a PID to give to a daemon that wants one.

A holder must cost next to nothing, outlive the plugin that made it and the runtime's restarts, hold none of the
runtime's pipes open (a runtime that reads them to their end would wait for ever), and be told from a later process with
the same number. So it is a forked child in a session of its own that becomes a program of a few instructions, made in
memory: nothing has to be installed, and no file of ours stays in use (12 kB of memory, against 14 MB for a Python that
waits).
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

PATIENCE = 2.0  # seconds a killed process gets to be gone
_CONTROL_GROUPS = ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified")  # version 2, 1, both
_OOM_SCORE = b"-998"  # as Kubernetes gives to its pause container: without it the container's interface goes

# pause() for ever, in machine code.
_CODE = {
    "x86_64": (62, bytes.fromhex("b822000000" "0f05" "ebf7")),  # mov eax, pause; syscall; jmp -9
    "aarch64": (183, struct.pack(  # ppoll(0, 0, 0, 0), for there is no pause
        "<7I", 0xD2800000, 0xD2800001, 0xD2800002, 0xD2800003, 0xD2800928, 0xD4000001, 0x17FFFFFA)),
}  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Process:
    """A process for ever: its number and its start time (field 22 of /proc/PID/stat, clock ticks since the boot)."""

    pid: int
    start_time: int


def start(title: str, save: Callable[[Process], None]) -> Process:
    """A holder in a fresh network namespace of its own; `title` is its command line, for people.

    `save` is called with it before it is let go: if that raises, or this process dies, the holder ends by itself.
    Raises OSError when there cannot be one.
    """
    ready, ready_end = os.pipe2(os.O_CLOEXEC)
    go_end, go = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _child(title, ready_end, go_end)
    os.close(ready_end)
    os.close(go_end)
    try:
        said = os.read(ready, 512)
        if said != b"+":
            raise OSError(f"cannot make a holder process: {said.decode(errors='replace') or 'it died'}")
        found = Process(pid, proc.alive_since(pid))
        save(found)
        os.write(go, b"+")
        os.read(ready, 1)  # its end of the pipe closes when it has become what it shall be
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
    return found


def is_alive(process: Process) -> bool:
    """Whether it is this very process that has the number now."""
    return process.start_time != 0 and proc.alive_since(process.pid) == process.start_time


def end(process: Process) -> bool:
    """No such process afterwards; False if there was none. Whoever else has its number now is left alone.

    Raises OSError when it cannot be ended.
    """
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if not is_alive(process):  # asked after the descriptor was opened, which names one process for ever
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
    """The path of its namespace, good while it lives."""
    return f"/proc/{process.pid}/ns/net"


def _child(title: str, ready: int, go: int) -> NoReturn:
    """The holder's life. Nothing of the plugin's may run in here after it: no exit handlers, no exceptions."""
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
            _let_go_of_everything({ready, go, program})
        except OSError as error:
            os.write(ready, f"{error}".encode())
            os._exit(1)
        os.write(ready, b"+")
        if os.read(go, 1) != b"+":
            os._exit(0)  # the plugin is gone, or does not want us
        os.close(go)
        _drop_privileges()
        with contextlib.suppress(OSError):
            os.execve(program, [title], {})
        os.closerange(3, max(ready, program) + 1)
        while True:  # a machine we have no program for, or a host that allows none from memory: dearer, not worse
            signal.pause()
    finally:
        os._exit(1)


def _let_go_of_everything(keep: set[int]) -> None:
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names are all that is wanted
        if int(name) > 2 and int(name) not in keep:
            with contextlib.suppress(OSError):  # the descriptor of the listing itself
                os.close(int(name))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _leave_control_group() -> None:
    """Out of the runtime's control group, into systemd's own or the topmost: a service manager that restarts the
    runtime ends what is in its group (CRI-O's unit does not say otherwise), and this must outlive it."""
    for tree in _CONTROL_GROUPS:
        for group in ("init.scope", "."):
            try:
                procs = os.open(f"{tree}/{group}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                os.write(procs, b"0")  # whoever writes
                break
            except OSError:
                continue  # a group inside a container, which takes no processes beside its own groups
            finally:
                os.close(procs)


def _spare_from_oom() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_bytes(_OOM_SCORE)


def _drop_privileges() -> None:
    """The program it becomes has no capability: it needs none, and a daemon with few of its own could not open the
    namespace of a process that has more (contract 5.3/30)."""
    with contextlib.suppress(OSError):
        privileges.lower(())


def _program() -> int:
    """A descriptor of the program, or of an empty file where there is none for this machine."""
    fd = os.memfd_create("zlayer-cni-holder", os.MFD_CLOEXEC)
    machine, code = _CODE.get(platform.machine(), (0, b""))
    if code:
        os.write(fd, _elf(machine, code))
    return fd


def _elf(machine: int, code: bytes) -> bytes:
    """The smallest ELF file that the kernel runs: one segment to read and execute, a stack that is not executable."""
    base, head, entry_size, align = 0x400000, 64, 56, 0x10000
    entry = head + 2 * entry_size
    size = entry + len(code)
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header = struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, base + entry, head, 0, 0, head, entry_size, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, align)
    stack = struct.pack("<IIQQQQQQ", 0x6474E551, 6, 0, 0, 0, 0, 0, 16)
    return ident + header + load + stack + code
