r"""A named pipe of Windows as a stream of bytes: where ZLayer's overlayd listens there (contract 1.3).

The daemon serves `\\.\pipe\zlayer-overlayd` in byte mode and makes the next instance only after a client has taken the
last one. So opening it may fail with ERROR_PIPE_BUSY for a moment: a failed attempt of `dial` like any other.
Reads and writes are overlapped, since a read that waits on an ordinary handle blocks every write on it and has no
timeout. The calls are those of CPython's `_winapi`; tests pass another object with the same methods.
"""

import importlib
import threading
from collections.abc import Sequence
from typing import Any, Protocol, cast

PIPE_PREFIX = "\\\\.\\pipe\\"
DEFAULT_PIPE = PIPE_PREFIX + "zlayer-overlayd"

_GENERIC_READ_WRITE = 0x8000_0000 | 0x4000_0000
_OPEN_EXISTING = 3
_OVERLAPPED = 0x4000_0000
_IDENTIFICATION_ONLY = 0x0010_0000 | 0x0001_0000
"""SECURITY_SQOS_PRESENT and SECURITY_IDENTIFICATION: a process that has taken the pipe's name learns who the caller is
and cannot act as the caller."""
_WAIT_TIMEOUT = 258
_LONGEST_WAIT = 0xFFFF_FFFE
"""Milliseconds; one more means "without limit"."""
_OPERATION_ABORTED = 995
_CHUNK = 1 << 16


class Overlapped(Protocol):
    """An operation under way, as `_winapi` has it."""

    event: int

    def GetOverlappedResult(self, wait: bool, /) -> tuple[int, int]: ...

    def getbuffer(self) -> bytes | None: ...

    def cancel(self) -> None: ...


class PipeApi(Protocol):
    """The functions of `_winapi` that a client needs. Each raises OSError."""

    def CreateFile(
        self, name: str, access: int, share: int, security: int, how: int, flags: int, template: int, /
    ) -> int: ...

    def ReadFile(self, handle: int, size: int, overlapped: Any, /) -> tuple[Overlapped, int]: ...

    def WriteFile(self, handle: int, data: bytes, overlapped: Any, /) -> tuple[Overlapped, int]: ...

    def WaitForMultipleObjects(self, handles: Sequence[int], wait_all: bool, milliseconds: int, /) -> int: ...

    def CloseHandle(self, handle: int, /) -> None: ...


def open_pipe(name: str, api: PipeApi | None = None) -> "PipeStream":
    """A connection to the pipe. Raises OSError: the pipe is not there or busy, or this is not Windows."""
    if api is None:
        try:
            api = cast(PipeApi, importlib.import_module("_winapi"))
        except ImportError:
            raise OSError(f"named pipes are Windows': {name} cannot be opened here") from None
    flags = _OVERLAPPED | _IDENTIFICATION_ONLY
    return PipeStream(api.CreateFile(name, _GENERIC_READ_WRITE, 0, 0, _OPEN_EXISTING, flags, 0), api)


class PipeStream:
    """A `Stream` (`cni.overlay.transport`) over an open pipe."""

    def __init__(self, handle: int, api: PipeApi) -> None:
        self._handle = handle
        self._api = api
        self._lock = threading.Lock()
        self._pending: Overlapped | None = None
        self._closed = False

    def send(self, data: bytes, seconds: float) -> None:
        """Write all of `data` within `seconds`. Raises TimeoutError, OSError."""
        _, size = self._done(lambda: self._api.WriteFile(self._handle, data, True), seconds)
        if size != len(data):
            raise OSError(f"{size} of {len(data)} bytes were written to the pipe")

    def receive(self, seconds: float) -> bytes:
        """What has arrived; b"" once the daemon has closed its end. Raises TimeoutError, OSError."""
        try:
            operation, size = self._done(lambda: self._api.ReadFile(self._handle, _CHUNK, True), seconds)
        except BrokenPipeError:
            return b""
        return bytes(operation.getbuffer() or b"")[:size]

    def close(self) -> None:
        """Cancel what is under way and close the handle, unless a thread still waits on it: then that thread does."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._pending is not None:
                self._pending.cancel()
                return
        self._api.CloseHandle(self._handle)

    def _finished(self) -> None:
        with self._lock:
            self._pending = None
            closed = self._closed
        if closed:
            self._api.CloseHandle(self._handle)

    def _done(self, start: Any, seconds: float) -> tuple[Overlapped, int]:
        """The finished operation and its bytes; cancelled where it does not finish in time."""
        with self._lock:
            if self._closed:
                raise OSError("the pipe was closed")
            operation, _ = start()
            self._pending = operation
        try:
            late = self._api.WaitForMultipleObjects(
                [operation.event], False, min(max(1, round(seconds * 1000)), _LONGEST_WAIT)
            )
            if late == _WAIT_TIMEOUT:
                operation.cancel()
            size, error = operation.GetOverlappedResult(True)
        finally:
            self._finished()
        if error == _OPERATION_ABORTED:
            raise TimeoutError if late == _WAIT_TIMEOUT else OSError("the pipe was closed")
        return operation, size
