"""The CNI socket where the system refuses further threads (TasksMax, a full PID cgroup)."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

import pytest

from cni.daemon.api.cni_socket import CniSocket, Reply
from cni.plugin import client


def call(path: Path) -> bytes:
    """One call, and what the daemon answered."""
    body = client.request({}, {}, b"")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(path))
        sock.sendall(len(body).to_bytes(4, "big") + body)
        data = b""
        while part := sock.recv(4096):
            data += part
    return data[4:]


def test_one_thread_answers_every_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = threading.Thread.start, []

    def refused(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as stack:
        listener.bind(str(tmp_path / "cni.sock"))
        listener.listen()
        served = CniSocket(listener, lambda _: Reply(0, b"answer"))
        monkeypatch.setattr(threading.Thread, "start", refused)
        served.start()
        stack.callback(served.close)
        assert [call(tmp_path / "cni.sock") for _ in range(3)] == [b"0 6\nanswer"] * 3
