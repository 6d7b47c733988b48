"""Kills a program between two system calls of its choice: a debugger's view of one call of the plugin.

The tracer follows the process that it starts and all it forks (ptrace(2)), counts every entry to and return from a
system call, and at the one it was told kills the first process, which is what a runtime does. From there on the others
are on their own. Everything happens in the calling thread, which must be on the machine already.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

TRACEME, CONT, DETACH, SYSCALL, SETOPTIONS = 0, 7, 17, 24, 0x4200
SYSGOOD, FORK, VFORK, CLONE = 1, 2, 4, 8
SYSCALL_INFO = 0x420E
WALL, WNOTHREAD = 0x40000000, 0x20000000
CONNECT = {"x86_64": 42, "aarch64": 203}.get(platform.machine(), -1)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


@dataclass(frozen=True)
class Traced:
    """The result: stops counted, the stop of the last connect(2) (0 for none), whether it was killed, the exit code of
    the first process, what it printed."""

    stops: int
    door: int
    killed: bool
    code: int
    out: bytes


def _ptrace(request: int, pid: int, data: int = 0) -> None:
    if _libc.ptrace(request, pid, None, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace {request:#x} of {pid}: {os.strerror(number)}")


def _let_go(pid: int, request: int, number: int = 0) -> None:
    try:
        _ptrace(request, pid, number)
    except ProcessLookupError:
        return  # it was killed in the meantime


def run(command: list[str], stdin: bytes, env: dict[str, str], kill_at: int = 0) -> Traced:
    """Run `command`; with `kill_at` kill it at that stop, counted from 1."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as printed:
        given.write(stdin)
        given.seek(0)
        process = subprocess.Popen(
            command, stdin=given, stdout=printed, stderr=subprocess.DEVNULL, env=env, cwd="/",
            preexec_fn=lambda: _libc.ptrace(TRACEME, 0, None, None),  # noqa: PLW1509 - one thread of this child's
        )  # fmt: skip
        stops, door, killed, code = _follow(process.pid, kill_at)
        process.returncode = code  # asked for already
        printed.seek(0)
        return Traced(stops, door, killed, code, printed.read())


def _follow(first: int, kill_at: int) -> tuple[int, int, bool, int]:
    stops, door, known, options = 0, 0, {first}, SYSGOOD | FORK | VFORK | CLONE
    os.waitpid(first, WALL | WNOTHREAD)  # stopped by its own exec
    _ptrace(SETOPTIONS, first, options)
    _ptrace(SYSCALL, first)
    while True:
        pid, status = os.waitpid(-1, WALL | WNOTHREAD)
        if not os.WIFSTOPPED(status):
            if pid == first:
                for other in known - {first}:
                    _abandon(other)
                return stops, door, False, os.waitstatus_to_exitcode(status)
            known.discard(pid)
            continue
        known.add(pid)
        number = os.WSTOPSIG(status)
        if number == signal.SIGTRAP | 0x80:
            stops += 1
            door = stops if not kill_at and _enters(pid, CONNECT) else door
            if stops == kill_at:
                os.kill(first, signal.SIGKILL)
                for other in known - {first}:
                    _abandon(other, stopped=other == pid)
                while True:
                    _, status = os.waitpid(first, WALL | WNOTHREAD)
                    if not os.WIFSTOPPED(status):
                        return stops, door, True, os.waitstatus_to_exitcode(status)
        deliver = 0 if number in (signal.SIGTRAP | 0x80, signal.SIGTRAP, signal.SIGSTOP) else number
        _let_go(pid, SYSCALL, deliver)


def _enters(pid: int, call: int) -> bool:
    """Whether a tracee that has stopped for a system call is about to make that one (struct ptrace_syscall_info)."""
    info = ctypes.create_string_buffer(96)
    if _libc.ptrace(SYSCALL_INFO, pid, len(info), ctypes.addressof(info)) < 0:
        return False
    return bool(info.raw[0] == 1 and struct.unpack_from("=Q", info.raw, 24)[0] == call)


def _stop(thread: int) -> None:
    """Send SIGSTOP to one thread. Raises ProcessLookupError."""
    if _libc.tgkill(_process_of(thread), thread, signal.SIGSTOP) < 0:
        raise ProcessLookupError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _process_of(thread: int) -> int:
    """The process of a thread. Raises ProcessLookupError."""
    try:
        status = Path(f"/proc/{thread}/status").read_text()
    except OSError as error:
        raise ProcessLookupError(thread) from error
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("Tgid:"))


def _abandon(pid: int, *, stopped: bool = False) -> None:
    """Let a tracee, a process or a thread, run on by itself. Only a stopped one can be let go, so it is stopped first.
    The signal is for that thread: one for its process may stop another thread, and the wait for this one never ends."""
    try:
        if not stopped:
            _stop(pid)
            while True:
                _, status = os.waitpid(pid, WALL | WNOTHREAD)
                if not os.WIFSTOPPED(status):
                    return
                if os.WSTOPSIG(status) == signal.SIGSTOP:
                    break
                _let_go(pid, SYSCALL)
        _ptrace(DETACH, pid)
        os.kill(_process_of(pid), signal.SIGCONT)
    except (ProcessLookupError, ChildProcessError):
        return
