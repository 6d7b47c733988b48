"""The daemon's records: all or none, for one boot, and never a reason not to start."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from cni.daemon.state.store import SCHEMA, Store
from cni.errors import InputOutput, StateUnusable


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.db"


@pytest.fixture
def opened(path):
    """Opens stores at `path`, and closes them afterwards."""
    stores = []

    def begin(boot="boot-1"):
        stores.append(Store(path, boot))
        return stores[-1]

    yield begin
    for store in stores:
        store.close()


def test_a_record_is_written_changed_and_deleted(opened):
    store = opened()
    store.apply([("thing", "a", b"1"), ("thing", "b", b"2"), ("other", "a", b"3")])
    store.apply([("thing", "a", b"9"), ("other", "a", None)])
    assert (store.load("thing"), store.load("other")) == ([("a", b"9"), ("b", b"2")], [])


def test_records_come_in_the_order_they_were_first_written(opened):
    store = opened()
    for key in "zaq":
        store.apply([("thing", key, b"1")])
    store.apply([("thing", "z", b"2")])
    assert [key for key, _ in store.load("thing")] == ["z", "a", "q"]


def test_deleting_what_is_not_there_changes_nothing(opened):
    store = opened()
    for _ in range(2):
        store.apply([("thing", "a", None)])
    assert store.load("thing") == []


def test_the_next_daemon_of_the_same_boot_finds_the_records(opened):
    first = opened()
    assert first.fresh
    first.apply([("thing", "a", b"1")])
    first.close()
    second = opened()
    assert (second.fresh, second.load("thing")) == (False, [("a", b"1")])


def test_records_of_an_earlier_boot_are_discarded(opened):
    opened("boot-1").apply([("thing", "a", b"1")])
    second = opened("boot-2")
    assert (second.fresh, second.load("thing")) == (True, [])
    second.apply([("thing", "b", b"1")])
    second.close()
    assert opened("boot-2").load("thing") == [("b", b"1")]


def test_the_file_is_for_its_owner_alone(opened, path):
    opened()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_change_that_cannot_be_written_takes_its_companions_with_it(opened):
    store = opened()
    with pytest.raises(InputOutput):
        store.apply([("thing", "a", b"1"), ("thing", "b", object())])
    assert store.load("thing") == []
    store.apply([("thing", "c", b"1")])
    assert store.load("thing") == [("c", b"1")]


def test_a_write_that_fails_is_an_error_with_a_code(opened, path):
    store = opened()
    with pytest.raises(InputOutput, match=str(path)) as caught:
        store.apply([("thing", "a", object())])
    assert caught.value.code == 5
    assert store.load("thing") == []


def test_a_full_disk_is_an_error_and_the_records_stay(path):
    """In a process of its own: what may be written is limited for the whole process."""
    script = """
        import resource, signal, sys
        from pathlib import Path
        from cni.daemon.state.store import Store
        from cni.errors import InputOutput
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        store = Store(Path(sys.argv[1]), "boot")
        store.apply([("thing", "kept", b"1")])
        size = 64 << 10
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        written = 0
        try:
            for written in range(1000):
                store.apply([("thing", str(written), bytes(1000))])
        except InputOutput as error:
            print(error.code, ("kept", b"1") in store.load("thing"), len(store.load("thing")) == written + 1)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == ["5", "True", "True"]
    assert len(Store(path, "boot").load("thing")) > 1


def test_what_was_applied_survives_kill_9(path):
    script = """
        import os, signal, sys
        from pathlib import Path
        from cni.daemon.state.store import Store
        store = Store(Path(sys.argv[1]), "boot")
        store.apply([("thing", "a", b"1")])
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(path)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    store = Store(path, "boot")
    assert store.load("thing") == [("a", b"1")]
    store.close()


def test_many_threads_write_at_once(opened):
    store = opened()

    def write(who):
        for n in range(20):
            store.apply([("thing", f"{who}-{n}", b"1"), ("count", str(who), str(n).encode())])

    threads = [threading.Thread(target=write, args=(who,)) for who in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.load("thing")) == 160
    assert {body for _, body in store.load("count")} == {b"19"}


# --- files that cannot be used ---


@pytest.mark.parametrize("content", [b"not a database at all" * 300, b"\0" * 8192, b"SQLite format 3\0" + b"x" * 500])
def test_a_damaged_file_is_set_aside(opened, path, content):
    path.write_bytes(content)
    store = opened()
    store.apply([("thing", "a", b"1")])
    assert store.fresh
    assert path.with_name("state.db.damaged").read_bytes() == content
    assert store.load("thing") == [("a", b"1")]


def test_an_empty_file_is_begun(opened, path):
    path.touch()
    assert opened().load("thing") == []


def test_a_truncated_file_is_set_aside(opened, path):
    fill(path)
    os.truncate(path, path.stat().st_size // 2)
    store = opened()
    assert (store.fresh, store.load("thing")) == (True, [])


def test_a_file_damaged_in_the_middle_is_set_aside(opened, path):
    fill(path)
    with path.open("r+b") as file:
        for page in range(3, path.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(b"\xff" * 200)
    store = opened()
    assert (store.fresh, store.load("thing")) == (True, [])


def fill(path):
    """A file of many pages, all of it in the main file rather than in the log beside it."""
    store = Store(path, "boot-1")
    store.apply([("thing", str(n), bytes([n % 256]) * 500) for n in range(200)])
    store.close()
    assert path.stat().st_size > 20 * 4096


@pytest.mark.parametrize("put", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/nonexistent/state.db")])
@pytest.mark.parametrize("earlier", [False, True])
def test_what_is_no_file_is_set_aside(opened, path, put, earlier):
    """As often as it comes, and nothing of it is lost."""
    if earlier:
        path.with_name("state.db.damaged").mkdir()
        path.with_name("state.db.damaged").joinpath("kept").touch()
    put(path)
    store = opened()
    store.apply([("thing", "a", b"1")])
    assert path.is_file()
    assert store.load("thing") == [("a", b"1")]
    assert len(list(path.parent.glob("state.db.damaged*"))) == 1 + earlier


def test_a_link_to_a_file_is_followed(opened, path):
    path.symlink_to(path.parent / "elsewhere.db")
    (path.parent / "elsewhere.db").touch()
    opened().apply([("thing", "a", b"1")])
    assert opened().load("thing") == [("a", b"1")]
    assert path.is_symlink()


def by_hand(path, *statements):
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        for statement in statements:
            db.execute(statement)


@pytest.mark.parametrize(
    "statements",
    [
        ["UPDATE meta SET value = 'seven' WHERE name = 'schema'"],
        ["UPDATE meta SET value = NULL WHERE name = 'schema'"],
        ["DROP TABLE meta", "CREATE TABLE meta (a, b, c)"],
        ["DROP TABLE record", "CREATE TABLE record (x)"],
        ["DROP TABLE record", "CREATE TABLE record (kind TEXT, key TEXT, body BLOB NOT NULL)"],
        ["DROP TABLE record", "CREATE VIEW record AS SELECT 1 AS kind, 2 AS key, 3 AS body"],
    ],
)
def test_tables_that_are_not_ours_are_set_aside(opened, path, statements):
    Store(path, "boot-1").close()
    by_hand(path, *statements)
    for each in "ab":
        store = opened()
        store.apply([("thing", each, b"1")])
    assert [key for key, _ in store.load("thing")] == ["a", "b"]
    assert path.with_name("state.db.damaged").exists()


def test_rows_that_are_not_ours_go_and_the_others_stay(opened, path):
    first = Store(path, "boot-1")
    first.apply([("thing", "a", b"1"), ("thing", "b", b"2")])
    first.close()
    by_hand(
        path,
        "INSERT INTO record VALUES (NULL, NULL, x'7b7d')",
        "INSERT INTO record VALUES ('thing', 'number', 5)",
        "INSERT INTO record VALUES ('thing', x'00ff', x'7b7d')",
        "INSERT INTO record VALUES ('thing', CAST(x'ff' AS TEXT), x'31')",
        "UPDATE record SET body = '3' WHERE key = 'b'",
    )
    assert opened().load("thing") == [("a", b"1"), ("b", b"3"), ("\ufffd", b"1")]
    assert [key for key, _ in opened().load("thing")] == ["a", "b", "\ufffd"]


def test_a_missing_directory_is_an_error_with_a_code(tmp_path):
    with pytest.raises(InputOutput, match="cannot open the records"):
        Store(tmp_path / "no" / "state.db", "boot")


def newer(path):
    Store(path, "boot-1").close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET value = ? WHERE name = 'schema'", (SCHEMA + 1,))
        db.execute("INSERT INTO record VALUES ('thing', 'a', 'of the future')")


def test_a_newer_versions_records_are_refused_and_left_alone(path):
    newer(path)
    with pytest.raises(StateUnusable, match="newer version") as caught:
        Store(path, "boot-1")
    assert f"schema {SCHEMA + 1}" in caught.value.details
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT body FROM record").fetchall() == [("of the future",)]


def test_a_newer_versions_records_of_an_earlier_boot_are_discarded(opened, path):
    newer(path)
    assert opened("boot-2").load("thing") == []


# --- files that another program changes while the store is open ---


def replaced(path):
    (path.parent / "other").write_bytes(b"garbage" * 1000)
    (path.parent / "other").rename(path)


def overwritten(path):
    with path.open("r+b") as file:
        file.write(b"\xff" * 20000)


def log_overwritten(path):
    with path.with_name("state.db-wal").open("r+b") as file:
        file.write(b"\xff" * 5000)


def removed(path):
    for each in path.parent.iterdir():
        each.unlink()


def emptied(path):
    os.truncate(path, 0)


def table_dropped(path):
    with sqlite3.connect(path) as other:
        other.execute("DROP TABLE record")


HANDS = [replaced, overwritten, log_overwritten, removed, emptied, table_dropped]


@pytest.mark.parametrize("hand", HANDS)
def test_what_somebody_did_to_the_file_is_seen_and_undone(opened, path, hand):
    store = opened()
    store.apply([("thing", "b", b"2"), ("thing", "a", b"1"), ("other", "c", b"3")])
    assert store.intact()
    hand(path)
    assert not store.intact()
    for _ in range(2):
        store.rewrite()
        assert store.intact()
    store.apply([("thing", "d", b"4")])
    copy = path.with_name("as-the-next-finds-it")
    copy.mkdir()
    for each in path.parent.glob("state.db*"):
        (copy / each.name).write_bytes(each.read_bytes())
    found = Store(copy / "state.db", "boot-1")
    assert (found.fresh, found.load("thing")) == (False, [("b", b"2"), ("a", b"1"), ("d", b"4")])
    found.close()
    assert not path.with_name("state.db.new").exists()


@pytest.mark.parametrize("hand", HANDS)
def test_a_change_that_finds_the_file_damaged_is_written_all_the_same(opened, path, hand):
    store = opened()
    store.apply([("thing", "a", b"1")])
    hand(path)
    store.apply([("thing", "b", b"2")])
    assert store.intact()
    store.close()
    assert opened().load("thing") == [("a", b"1"), ("b", b"2")]


def test_our_own_writing_is_nobody_elses(opened):
    store = opened()
    for n in range(300):  # past the size at which the log is taken into the file
        store.apply([("thing", str(n), bytes(20000))])
        assert store.intact()


def test_a_rewrite_that_cannot_be_is_an_error_and_leaves_nothing(opened, path):
    store = opened()
    store.apply([("thing", "a", b"1")])
    (path.parent / "state.db.new").mkdir()
    with pytest.raises(InputOutput):
        store.rewrite()
    (path.parent / "state.db.new").rmdir()
    store.apply([("thing", "b", b"2")])
    store.close()
    assert opened().load("thing") == [("a", b"1"), ("b", b"2")]
