"""A local user without privileges: keeps no daemon out, passes for none, and is sent nothing."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cni.overlay import wire
from cni.overlay.sockets import socket_path
from cni.plugin import delete_queue
from tests.mesh.fleet import Container, Node, run, wait_for
from tests.safety.test_owners import unattached

USER = 65534
AS_USER = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "/usr/bin/python3", "-c")

IN_FLIGHT = """
import array, socket, sys, time
one, two = socket.socketpair()
kept = []
for name in sys.argv[1:]:
    held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    held.bind("\\0" + name)
    one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [held.fileno()]))])
    held.close()
print("held", flush=True)
time.sleep(600)
"""
"""Takes names in the kernel, and leaves the descriptors in flight: no /proc/PID/fd shows them."""

LISTEN = """
import fcntl, os, socket, sys
path = sys.argv[1]
os.umask(0)
lock = open(path + ".lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
ear = socket.socket(socket.AF_UNIX)
ear.bind(path)
ear.listen(64)
print("held", flush=True)
while True:
    speaker, _ = ear.accept()
    speaker.settimeout(5)
    data = speaker.recv(65536)
    if data:
        print("heard", len(data), flush=True)
"""
"""Listens at a path, holds a lock beside it, and tells what it is sent."""


@contextlib.contextmanager
def as_user(script: str, *words: str, netns: str = "") -> Iterator[subprocess.Popen[str]]:
    """The script, run by an unprivileged user, once it says `held`."""
    inside = ("nsenter", f"--net={netns}") if netns else ()
    process = subprocess.Popen([*inside, *AS_USER, script, *words], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def heard(process: subprocess.Popen[str]) -> str:
    """What it has told since. Ends it."""
    assert process.poll() is None
    process.kill()
    assert process.stdout is not None
    return process.stdout.read()


def problems(node: Node) -> list[str]:
    return [each["code"] for each in node.tool("status")["problem_details"]]


def test_a_name_left_in_flight_keeps_no_daemon_out(frozen: Callable[..., Node]) -> None:
    node = frozen(1, start=False)
    status = node.directory.stat()
    place = delete_queue.key((str(status.st_dev), str(status.st_ino), "run"))
    with as_user(IN_FLIGHT, f"zlayer-cni.run-dir/{place}", netns=node.path):
        node.start()
        assert problems(node) == []


def test_a_running_daemon_does_not_believe_in_a_second_one(frozen: Callable[..., Node]) -> None:
    node = frozen(1)
    with as_user(IN_FLIGHT, "zlayer-cni.overlayd/1", netns=node.path):
        run("ip", "netns", "exec", node.name, "nft", "add element inet zlayer_cni inside { theirs0 }")
        node.end()
        node.start()  # alone, it takes out of its tables what it does not know
        assert "theirs0" not in run("ip", "netns", "exec", node.name, "nft", "list set inet zlayer_cni inside")
        assert problems(node) == []


def test_two_daemons_in_one_namespace_know_of_each_other(frozen: Callable[..., Node]) -> None:
    """The other direction: what counts is a lock that root alone can take."""
    node = frozen(1)
    other = frozen(2, start=False)
    here, other.name = other.name, node.name
    try:
        other.start()
        assert "second-daemon" in problems(other)
        other.end()
    finally:
        other.name = here
    node.end()
    node.start()
    assert problems(node) == []


def in_tmp(node: Node) -> str:
    """Where the socket is by ZLayer's rule, with a data directory that is too long for one inside."""
    path = socket_path(str(node.directory / ("d" * 100)), 0, "/root")
    assert path.startswith("/tmp/zlayer-overlayd-")
    return path


def peer(path: str) -> int:
    """The user whose process listens there."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        user: int = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
        return user


def test_a_socket_that_a_user_made_first_gives_way_to_the_daemons(frozen: Callable[..., Node]) -> None:
    node = frozen(1, start=False)
    node.socket = in_tmp(node)
    try:
        with as_user(LISTEN, node.socket):
            node.start()
            wait_for(lambda: peer(node.socket) == 0, "the daemon's socket")
            assert isinstance(node.ask(wire.StatusRequest()), wire.Status)
            assert problems(node) == []
            assert Path(node.socket).stat().st_uid == 0
    finally:
        for path in (node.socket, f"{node.socket}.lock"):
            Path(path).unlink(missing_ok=True)


def test_what_is_no_socket_is_moved_aside_where_every_user_may_write(frozen: Callable[..., Node]) -> None:
    node = frozen(1, start=False)
    node.socket = in_tmp(node)
    there = Path(node.socket)
    there.mkdir()
    (there / "kept").write_text("theirs")
    os.chown(there, USER, USER)
    try:
        node.start()
        assert peer(node.socket) == 0
        (moved,) = there.parent.glob(f"{there.name}.*.moved")
        assert (moved / "kept").read_text() == "theirs"
        (moved / "kept").unlink()
        moved.rmdir()
    finally:
        there.unlink(missing_ok=True)


def refused(node: Node, container: Container) -> dict[str, object]:
    """What an ADD is answered that fails."""
    with pytest.raises(RuntimeError) as caught:
        node.plugin("ADD", container)
    text = str(caught.value)
    found: dict[str, object] = json.JSONDecoder().raw_decode(text[text.index("{") :])[0]
    return found


def test_a_client_sends_nothing_to_another_users_process(frozen: Callable[..., Node]) -> None:
    node = frozen(1, start=False)
    path = in_tmp(node)
    container = unattached(node, "c1")
    container.conf = {"overlayd": {"socket": path}}
    node.log.touch()
    try:
        with as_user(LISTEN, path) as user:
            said = refused(node, container)
            assert said["code"] == 11 and f"user {USER}" in str(said)
            assert heard(user) == ""
    finally:
        for each in (path, f"{path}.lock"):
            Path(each).unlink(missing_ok=True)


def test_the_plugin_sends_nothing_to_another_users_process(frozen: Callable[..., Node]) -> None:
    node = frozen(1, start=False)
    theirs = node.directory / "run"
    theirs.mkdir()
    os.chown(theirs, USER, USER)
    container = unattached(node, "c1")
    node.log.touch()
    with as_user(LISTEN, str(theirs / "cni.sock")) as user:
        said = refused(node, container)
        assert said["code"] == 11 and f"user {USER}" in str(said)
        assert heard(user) == ""


@pytest.mark.parametrize(("user", "mode"), [(USER, 0o755), (0, 0o777)])
def test_a_run_directory_of_others_is_refused(frozen: Callable[..., Node], user: int, mode: int) -> None:
    node = frozen(1, start=False)
    theirs = node.directory / "run"
    theirs.mkdir()
    os.chown(theirs, user, user)
    theirs.chmod(mode)
    done = node.cli("overlayd", "--run-dir", str(theirs), "--data-dir", str(node.directory / "data"))
    assert done.returncode == 1
    assert str(theirs) in done.stderr and "root's alone" in done.stderr


def test_a_socket_is_not_made_where_others_may_replace_it(frozen: Callable[..., Node]) -> None:
    node = frozen(1, start=False)
    theirs = node.directory / "theirs"
    theirs.mkdir()
    os.chown(theirs, USER, USER)
    own = node.socket
    node.settings["overlay_socket"] = node.socket = str(theirs / "overlayd.sock")
    node.serves = (node.directory / "run/cni.sock").exists  # type: ignore[method-assign]
    node.start()
    assert problems(node) == ["overlay-socket-closed"]
    assert not (theirs / "overlayd.sock").exists()
    node.socket = own
