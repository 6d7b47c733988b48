"""Runs one of our programs: once, to check that it works in its directory, or beside this process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence

PATIENCE = 30  # seconds
LISTENERS = "ZLAYER_CNI_LISTENERS"
"""The variable with the descriptors of the listening sockets that a program was started with, with commas between."""


class Child:
    """A program that runs beside this process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def has_ended(self) -> bool:
        """Whether it has ended; then it is reaped."""
        return self._process.poll() is not None

    def end(self) -> None:
        """Tell it to end. It detaches what it has attached, and this process does not wait for that."""
        self._process.terminate()


def start_with(words: Sequence[str], listeners: Sequence[socket.socket]) -> Child:
    """Start this program's own tool with listening sockets. Raises OSError."""
    descriptors = [sock.fileno() for sock in listeners]
    argv = [sys.executable] if getattr(sys, "frozen", False) else [sys.executable, "-m", "cni"]
    env = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    env[LISTENERS] = ",".join(map(str, descriptors))
    return Child(subprocess.Popen([*argv, *words], env=env, pass_fds=descriptors, stdin=subprocess.DEVNULL))


def inherited_listeners() -> list[socket.socket]:
    """The listening sockets that this program was started with. Raises OSError, ValueError."""
    text = os.environ.pop(LISTENERS, "")
    made = [socket.socket(fileno=int(word)) for word in text.split(",") if word]
    for sock in made:
        sock.setblocking(False)
    return made


def run_once(argv: list[str], env: dict[str, str], stdin: bytes) -> tuple[int, bytes, bytes]:
    """(exit code, stdout, stderr) of a short-lived program. Raises OSError if it cannot be started, or does not end
    within PATIENCE."""
    try:
        done = subprocess.run(argv, env=env, input=stdin, capture_output=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{argv[0]} did not end within {PATIENCE} s") from error
    return done.returncode, done.stdout, done.stderr
