"""One thread of a process, stopped or ended from outside, as no daemon does on demand (ptrace(2), x86-64)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SEIZE, INTERRUPT, GETREGS, SETREGS, DETACH = 0x4206, 0x4207, 12, 13, 17
RAX, RDI, ORIG_RAX, RIP = 10, 14, 15, 16  # indexes in struct user_regs_struct (sys/user.h)
EXIT = 60  # the system call that ends one thread
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


def thread_of(pid: int, name: str) -> int:
    """The thread of that name. Raises AssertionError if there is none."""
    found = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir() if _name(task) == name]
    assert found, f"process {pid} has no thread {name}"
    return found[0]


def _name(task: Path) -> str:
    try:
        return (task / "comm").read_text().strip()
    except OSError:
        return ""


def _ptrace(request: int, tid: int, data: object = None) -> None:
    if _libc.ptrace(request, tid, None, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace {request} of {tid}: {os.strerror(number)}")


def _stop(tid: int) -> None:
    _ptrace(SEIZE, tid)
    _ptrace(INTERRUPT, tid)
    os.waitpid(tid, 0x40000000)  # __WALL


def _in_a_thread(work: Callable[[], None]) -> threading.Thread:
    """Who traces is a thread, and the trace ends with it."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@contextlib.contextmanager
def stopped(tid: int, lets_go: bool = True) -> Iterator[None]:
    """The thread hangs for as long as the block lasts; the others of its process go on. `lets_go`: when it is killed
    it ends, which a tracer can delay."""
    ready, over = threading.Event(), threading.Event()

    def hold() -> None:
        _stop(tid)
        ready.set()
        while not over.wait(0.05):
            if lets_go:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(tid, 0x40000000 | os.WNOHANG)
        with contextlib.suppress(OSError):  # its process has executed another program
            _ptrace(DETACH, tid)

    thread = _in_a_thread(hold)
    assert ready.wait(10), "the thread could not be stopped"
    try:
        yield
    finally:
        over.set()
        thread.join(10)


def end(tid: int) -> None:
    """The thread ends, as if it had called exit(2), wherever it waits in a system call."""
    if platform.machine() != "x86_64":
        pytest.skip("the registers are spelled for x86-64")
    done: list[bool] = []

    def kill() -> None:
        _stop(tid)
        registers = (ctypes.c_ulonglong * 27)()
        _ptrace(GETREGS, tid, registers)
        registers[RIP] -= 2  # back to the `syscall` instruction in which it waits
        registers[RAX], registers[RDI], registers[ORIG_RAX] = EXIT, 0, (1 << 64) - 1
        _ptrace(SETREGS, tid, registers)
        _ptrace(DETACH, tid)
        done.append(True)

    _in_a_thread(kill).join(10)
    assert done, "the thread could not be ended"
