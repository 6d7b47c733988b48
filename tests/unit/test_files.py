"""Files put in place at once, and locks on files: for every process, so with nothing but the system calls."""

import os
import subprocess
import sys
import threading

import pytest

from cni import files, lock_files


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("durable", [True, False])
def test_a_file_holds_the_new_content_with_its_mode_and_nothing_is_beside_it(tmp_path, alone, durable):
    path = tmp_path / "kept"
    for content in (b"old", b"", os.urandom(1 << 20)):
        files.write(str(path), content, 0o640, alone=alone, durable=durable)
        assert path.read_bytes() == content
        assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_the_old_content_and_nothing_else(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "inside").write_text("old")
    with pytest.raises(OSError):
        files.write(str(tmp_path / "kept"), b"new")
    assert [each.name for each in tmp_path.iterdir()] == ["kept"]
    with pytest.raises(OSError):
        files.write(str(tmp_path / "missing" / "kept"), b"new")


def test_what_a_killed_writer_left_is_overwritten_and_a_link_is_not_followed(tmp_path):
    path, victim = tmp_path / "kept", tmp_path / "victim"
    (tmp_path / ".kept.new").write_bytes(b"half of a very long content")
    files.write(str(path), b"new")
    assert path.read_bytes() == b"new"
    victim.write_bytes(b"untouched")
    (tmp_path / ".kept.new").symlink_to(victim)
    with pytest.raises(OSError):
        files.write(str(path), b"newer")
    assert (path.read_bytes(), victim.read_bytes()) == (b"new", b"untouched")


def test_every_reader_sees_one_content_whole(tmp_path):
    path, stop, broken = tmp_path / "kept", threading.Event(), []
    files.write(str(path), b"a" * 70_000, durable=False)

    def read():
        while not stop.is_set():
            content = path.read_bytes()
            if len(content) != 70_000 or len(set(content)) != 1:
                broken.append(content)

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(200):
        files.write(str(path), b"ab"[n % 2 : n % 2 + 1] * 70_000, durable=False)
    stop.set()
    reader.join()
    assert not broken


def test_a_lock_ends_with_the_process_that_has_it(tmp_path):
    path = str(tmp_path / "lock")
    program = (
        "import sys; from cni import lock_files; fd = lock_files.opened(sys.argv[1]);"
        "print(lock_files.take(fd), flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "True\n"
        fd = lock_files.opened(path)
        assert not lock_files.take(fd)
        assert not lock_files.take(fd, shared=True, patience=0.05)
        holder.kill()
        assert lock_files.take(fd, patience=30)
        other = lock_files.opened(path)
        assert not lock_files.take(other, shared=True)
        os.close(fd)
        assert lock_files.take(other, shared=True)
        third = lock_files.opened(path)
        assert lock_files.take(third, shared=True)
        assert not lock_files.take(third)
        os.close(third)
        os.close(other)
    finally:
        holder.kill()
        holder.communicate()
