"""The functions of Windows' `_winapi` that the pipe client uses, on Linux: each pipe is a Unix socket.

Reads are overlapped as on Windows: they finish in WaitForMultipleObjects, are aborted by `cancel`, and say so in
GetOverlappedResult. Handles are counted, so that a test sees what was left open.
"""

from __future__ import annotations

import itertools
import os
import select
import socket
import threading
from collections.abc import Sequence
from typing import Any

PIPE_BUSY, BROKEN_PIPE, NOT_FOUND = 231, 109, 2
ABORTED, TIMED_OUT = 995, 258


def windows_error(number: int, text: str, kind: type[OSError] = OSError) -> OSError:
    """As Windows raises it, in so far as Linux has the same."""
    error = kind(number, text)
    error.winerror = number  # type: ignore[attr-defined]
    return error


class Operation:
    """A read or write under way."""

    def __init__(self, api: FakeWinapi, sock: socket.socket, size: int, done: int | None = None) -> None:
        self.event = next(api.numbers)
        self.sock, self.size, self.done = sock, size, done
        self.wake, self.waker = os.pipe()
        self.aborted = False
        self._buffer = b""
        api.operations[self.event] = self

    def __del__(self) -> None:
        os.close(self.wake)
        os.close(self.waker)

    def cancel(self) -> None:
        if self.done is None:
            self.aborted = True
            os.write(self.waker, b"x")

    def wait(self, seconds: float) -> bool:
        """Whether it finished in that time, or was aborted."""
        if self.done is None and not self.aborted:
            watched: list[Any] = [self.sock, self.wake]
            ready, _, _ = select.select(watched, [], [], seconds)
            return bool(ready)
        return True

    def GetOverlappedResult(self, wait: bool, /) -> tuple[int, int]:
        if self.done is not None:
            return self.done, 0
        if self.aborted:
            return 0, ABORTED
        assert wait
        self._buffer = self.sock.recv(self.size)
        if not self._buffer:
            raise windows_error(BROKEN_PIPE, "The pipe has been ended", BrokenPipeError)
        self.done = len(self._buffer)
        return self.done, 0

    def getbuffer(self) -> bytes:
        return self._buffer


class FakeWinapi:
    """`pipes` are names and the paths of the Unix sockets behind them; the first `busy` opens fail."""

    def __init__(self, pipes: dict[str, str], busy: int = 0) -> None:
        self.pipes, self.busy = pipes, busy
        self.numbers = itertools.count(100)
        self.handles: dict[int, socket.socket] = {}
        self.operations: dict[int, Operation] = {}
        self.flags = 0
        self.short = False  # whether writes stop in the middle
        self.waiting = threading.Event()

    def CreateFile(self, name: str, *rest: int) -> int:
        _access, _share, _security, _how, self.flags, _template = rest
        if self.busy:
            self.busy -= 1
            raise windows_error(PIPE_BUSY, "All pipe instances are busy")
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(self.pipes[name])
        except (KeyError, OSError):
            sock.close()
            raise windows_error(NOT_FOUND, "The system cannot find the file specified", FileNotFoundError) from None
        number = next(self.numbers)
        self.handles[number] = sock
        return number

    def ReadFile(self, handle: int, size: int, overlapped: Any, /) -> tuple[Operation, int]:
        assert overlapped
        return Operation(self, self.handles[handle], size), 997

    def WriteFile(self, handle: int, data: bytes, overlapped: Any, /) -> tuple[Operation, int]:
        assert overlapped
        data = data[: len(data) // 2] if self.short else data
        self.handles[handle].sendall(data)
        return Operation(self, self.handles[handle], 0, len(data)), 0

    def WaitForMultipleObjects(self, handles: Sequence[int], wait_all: bool, milliseconds: int, /) -> int:
        (event,) = handles
        assert not wait_all
        self.waiting.set()
        return 0 if self.operations.pop(event).wait(milliseconds / 1000) else TIMED_OUT

    def CloseHandle(self, handle: int, /) -> None:
        self.handles.pop(handle).close()
