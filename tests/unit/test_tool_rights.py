"""Without root, every command of the tool says that it needs root, and not that there is no daemon."""

import contextlib
import os
import socket

import pytest

from cni import answers
from cni.cli import (
    ask,
    attachments,  # noqa: F401 - loaded here: after setuid the sources may be unreadable
    gc,  # noqa: F401
    graph,  # noqa: F401
    main,
    networks,  # noqa: F401
    peer,  # noqa: F401
    peers,  # noqa: F401
    status,  # noqa: F401
    why,  # noqa: F401
)

UNPRIVILEGED = 65534
COMMANDS = "status, attachments, networks, why node outside, gc, peers, peer token, join zlnode1.x, showconf x, graph"


def as_user(work) -> tuple[int, str]:
    """The result of `work` in a child without root, and its stderr."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresuid(UNPRIVILEGED, UNPRIVILEGED, UNPRIVILEGED)
            with os.fdopen(writer, "w") as text, contextlib.redirect_stderr(text):
                code = work()
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


@pytest.fixture
def closed(tmp_path):
    """A run directory whose socket is closed to other users, as a daemon of root makes it."""
    directory = tmp_path / "run"
    directory.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "cni.sock"))
        listener.listen()
        (directory / "cni.sock").chmod(0)
        directory.chmod(0o700 if os.geteuid() == 0 else 0o000)
        yield directory
        directory.chmod(0o700)


@pytest.mark.parametrize("words", COMMANDS.split(", "))
def test_a_command_that_asks_the_daemon(words, closed):
    code, said = as_user(lambda: main.main([*words.split(), "--run-dir", str(closed)]))
    assert (code, "needs root" in said, "no overlay daemon" in said) == (1, True, False), said


@pytest.mark.parametrize("words", ["install", "uninstall"])
def test_a_command_that_changes_the_machine(words):
    code, said = as_user(lambda: main.main([words]))
    assert (code, said.count("needs root"), said.count("\n")) == (1, 1, 1), said


def test_whether_a_daemon_runs_is_told_where_it_can_be_seen(tmp_path):
    with pytest.raises(ask.NoDaemon):
        ask.ask(str(tmp_path), "status", answers.Status)
