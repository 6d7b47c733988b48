"""The delete queue: whole or not at all, one entry an attachment, shared by plugins and drained by one daemon."""

import os
import threading
import time
from pathlib import Path

import pytest

from cni.plugin import delete_queue

EXAMPLE = ("net", "container", "eth0")


@pytest.fixture
def run_dir(tmp_path: Path) -> str:
    return str(tmp_path)


def test_what_is_added_is_read_back_oldest_first_and_removed_twice(run_dir):
    wanted = {}
    for number in (3, 1, 2):
        body = os.urandom(5000)
        name = delete_queue.add(run_dir, ("net", f"container-{number}", "eth0"), body)
        os.utime(Path(delete_queue.directory(run_dir), name), (number, number))
        wanted[number] = (name, body)
    assert delete_queue.names(run_dir)
    assert list(delete_queue.entries(run_dir)) == [wanted[1], wanted[2], wanted[3]]
    for name, _ in (*wanted.values(), *wanted.values()):
        delete_queue.remove(run_dir, name)
    assert not delete_queue.names(run_dir)


def test_no_queue_is_an_empty_queue(run_dir):
    assert delete_queue.names(run_dir) == []
    assert list(delete_queue.entries(run_dir)) == []
    assert not delete_queue.names(run_dir)
    delete_queue.remove(run_dir, "0" * 32)
    delete_queue.sweep(run_dir)


def test_the_same_attachment_is_one_entry_and_the_last_word_counts(run_dir):
    first = delete_queue.add(run_dir, EXAMPLE, b"first")
    assert delete_queue.add(run_dir, EXAMPLE, b"second") == first
    assert list(delete_queue.entries(run_dir)) == [(first, b"second")]


def test_names_tell_attachments_apart():
    others = [("net", "container", "eth1"), ("netcontainer", "", "eth0"), ("ne", "tcontainer", "eth0"), ("", "", "")]
    assert len({delete_queue.key(parts) for parts in [EXAMPLE, *others]}) == 5
    assert all(len(delete_queue.key(parts)) == 32 for parts in others)


def test_it_is_bounded_but_an_entry_can_still_be_replaced(run_dir, monkeypatch):
    monkeypatch.setattr(delete_queue, "LIMIT", 2)
    delete_queue.add(run_dir, EXAMPLE, b"1")
    delete_queue.add(run_dir, ("net", "other", "eth0"), b"1")
    with pytest.raises(delete_queue.QueueFull):
        delete_queue.add(run_dir, ("net", "third", "eth0"), b"1")
    delete_queue.add(run_dir, EXAMPLE, b"2")
    assert len(delete_queue.names(run_dir)) == 2


def test_a_write_that_fails_leaves_nothing(run_dir, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
    with pytest.raises(OSError, match="No space left"):
        delete_queue.add(run_dir, EXAMPLE, b"body")
    assert [path.name for path in Path(delete_queue.directory(run_dir)).iterdir()] == [".lock"]


def test_what_a_killed_writer_left_is_no_entry_and_is_swept(run_dir):
    name = delete_queue.add(run_dir, EXAMPLE, b"body")
    left = Path(delete_queue.directory(run_dir), f"{name}.4711.tmp")
    left.write_bytes(b"half")
    assert delete_queue.names(run_dir) == [name]
    delete_queue.sweep(run_dir)
    assert not left.exists()
    assert delete_queue.names(run_dir) == [name]


def test_plugins_share_the_lock_and_the_daemon_takes_it_whole(run_dir):
    with (
        delete_queue.Lock(run_dir, whole=False, patience=0) as one,
        delete_queue.Lock(run_dir, whole=False, patience=0) as two,
        delete_queue.Lock(run_dir, whole=True, patience=0) as daemon,
    ):
        assert (one.held, two.held, daemon.held) == (True, True, False)
    with (
        delete_queue.Lock(run_dir, whole=True, patience=0) as daemon,
        delete_queue.Lock(run_dir, whole=False, patience=0) as plugin,
    ):
        assert (daemon.held, plugin.held) == (True, False)


def test_a_plugin_waits_while_the_daemon_drains_but_not_for_ever(run_dir, monkeypatch):
    monkeypatch.setattr(delete_queue, "_PATIENCE", 0.1)
    with delete_queue.Lock(run_dir, whole=True, patience=0):
        begun = time.monotonic()
        delete_queue.add(run_dir, EXAMPLE, b"body")
        assert 0.1 <= time.monotonic() - begun < 20
    assert delete_queue.names(run_dir)


def test_the_daemon_waits_for_a_plugin_that_writes(run_dir):
    plugin = delete_queue.Lock(run_dir, whole=False, patience=0)
    threading.Timer(0.05, plugin.__exit__).start()
    with delete_queue.Lock(run_dir, whole=True, patience=5) as daemon:
        assert daemon.held
