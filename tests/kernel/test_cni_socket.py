"""The CNI socket beside silent and slow clients, and where the system refuses further threads."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni.daemon.api import cni_socket
from cni.daemon.api.cni_socket import CniSocket, Reply
from cni.plugin import client

BODY = client.request({}, {}, b"{}")
REQUEST = len(BODY).to_bytes(4, "big") + BODY
ANSWER = b"0 6\nanswer"


@contextlib.contextmanager
def serving(path: Path) -> Iterator[Path]:
    """A CNI socket that gives one answer to every call; its path."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path / "cni.sock"))
        listener.listen(1024)
        served = CniSocket(listener, lambda _: Reply(0, b"answer"))
        served.start()
        try:
            yield path / "cni.sock"
        finally:
            served.close()
            served.finish(5)


def call(path: Path, *parts: bytes) -> bytes:
    """One call, sent in parts; what the daemon answered."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(path))
        for part in parts or (REQUEST,):
            sock.sendall(part)
            time.sleep(0.03 if parts else 0)
        data = b""
        while received := sock.recv(4096):
            data += received
    return data[4:]


def test_one_thread_answers_every_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system refuses further threads (TasksMax, a full PID cgroup)."""
    start, started = threading.Thread.start, []

    def refused(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    with serving(tmp_path) as path:
        assert [call(path) for _ in range(3)] == [ANSWER] * 3


def test_a_request_in_pieces_is_answered(tmp_path: Path) -> None:
    with serving(tmp_path) as path:
        assert call(path, *(REQUEST[n : n + 4] for n in range(0, len(REQUEST), 4))) == ANSWER


def test_silent_clients_keep_no_call_waiting(tmp_path: Path) -> None:
    """More of them than threads; they occupy none, and are closed after PATIENCE."""
    with serving(tmp_path) as path, contextlib.ExitStack() as stack:
        for part in (b"", REQUEST[:7]) * cni_socket.MOST:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.connect(str(path))
            sock.sendall(part)
        began = time.monotonic()
        assert call(path) == ANSWER
        assert time.monotonic() - began < 3
        stack.close()
        assert call(path) == ANSWER
