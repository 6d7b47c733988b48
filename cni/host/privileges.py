"""Capabilities of one thread, and of what it starts (capabilities(7), prctl(2)).

Linux keeps credentials for each thread, and a child has those of the thread that started it. So a program is started
with less by a thread that has less, and the rest of the process keeps what it has.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

NET_BIND_SERVICE, NET_ADMIN = 10, 12  # capability numbers (linux/capability.h)
_LAST = 63
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_VERSION_3 = 0x20080522  # _LINUX_CAPABILITY_VERSION_3: two words of 32 capabilities for each set

_libc = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")


def lowered(keep: Iterable[int], work: Callable[[], T]) -> T:
    """What `work` returns, run in a thread that has at most the capabilities `keep` and can gain none by execve.

    Raises what `work` raises; OSError if the kernel refuses to take a capability away: then `work` has not run.
    """
    done: list[T] = []
    failed: list[BaseException] = []

    def body() -> None:
        try:
            lower(keep)
            done.append(work())
        except BaseException as error:  # noqa: BLE001 - it is raised in the caller's thread
            failed.append(error)

    thread = threading.Thread(target=body, name="lowered")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


def lower(keep: Iterable[int]) -> None:
    """The calling thread has at most the capabilities `keep` from now on, and execve gives it no more.

    The bounding set is lowered where that is allowed (CAP_SETPCAP, which the unit does not grant). Where it is not,
    no_new_privs has the same effect: a program that root runs gets no capability that the thread did not have. Raises
    OSError.
    """
    kept = set(keep)
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for capability in set(range(_LAST + 1)) - kept:
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    _call(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    header = ctypes.create_string_buffer(struct.pack("=Ii", _VERSION_3, 0), 8)
    words = (ctypes.c_uint32 * 6)()
    _call(_libc.capget(header, words), "capget")
    for half in (0, 1):
        mask = sum(1 << number % 32 for number in kept if number // 32 == half)
        effective, permitted = words[3 * half] & mask, words[3 * half + 1] & mask
        words[3 * half], words[3 * half + 1], words[3 * half + 2] = effective, permitted, 0
    _call(_libc.capset(header, words), "capset")


def _call(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
