"""Capabilities of one thread, and of the programs that it starts (capabilities(7), prctl(2)).

Linux keeps credentials for each thread, and a child inherits those of the thread that started it. So a thread with
fewer capabilities starts a program with fewer capabilities, and the other threads keep theirs.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Iterable
from typing import TypeVar

from cni.host.short_thread import in_thread

NET_BIND_SERVICE, NET_ADMIN = 10, 12  # capability numbers (linux/capability.h)
_LAST = 63
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_VERSION_3 = 0x20080522  # _LINUX_CAPABILITY_VERSION_3: two words of 32 capabilities for each set

_libc = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")


def lowered(keep: Iterable[int], work: Callable[[], T]) -> T:
    """Run `work` in a thread that has at most the capabilities `keep` and can gain none by execve; returns its result.

    Raises what `work` raises; OSError if the kernel refuses to drop a capability: then `work` has not run.
    """

    def body() -> T:
        lower(keep)
        return work()

    return in_thread(body, "lowered")


def lower(keep: Iterable[int]) -> None:
    """Reduce the calling thread to at most the capabilities `keep`; execve cannot add any.

    The bounding set is reduced if that is allowed (CAP_SETPCAP, which the unit does not grant). Otherwise no_new_privs
    has the same effect: a program that root runs gets no capability that the thread did not have. Raises OSError.
    """
    kept = set(keep)
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for capability in set(range(_LAST + 1)) - kept:
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    _call(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    header = ctypes.create_string_buffer(struct.pack("=Ii", _VERSION_3, 0), 8)
    capability_sets = (ctypes.c_uint32 * 6)()
    _call(_libc.capget(header, capability_sets), "capget")
    for half in (0, 1):
        mask = sum(1 << number % 32 for number in kept if number // 32 == half)
        effective, permitted = capability_sets[3 * half] & mask, capability_sets[3 * half + 1] & mask
        capability_sets[3 * half], capability_sets[3 * half + 1], capability_sets[3 * half + 2] = (
            effective,
            permitted,
            0,
        )
    _call(_libc.capset(header, capability_sets), "capset")


def _call(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
