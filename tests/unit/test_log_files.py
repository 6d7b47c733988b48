"""A log file is bounded: its last words are in one earlier file."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni import last_words, log_files
from cni.daemon import log_lines

MOST = 1000  # bytes


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "overlayd.log"


def test_a_small_file_stays(log: Path) -> None:
    log.write_bytes(b"x" * MOST)
    assert not log_files.bound(str(log), MOST)
    assert log.stat().st_size == MOST and not Path(f"{log}.1").exists()


def test_a_large_one_keeps_its_last_lines_and_its_writer(log: Path) -> None:
    with log.open("ab", buffering=0) as writer:
        for number in range(1000):
            writer.write(f"line {number}\n".encode())
        assert log_files.bound(str(log), MOST)
        writer.write(b"after\n")
    assert log.read_text() == "after\n"
    kept = Path(f"{log}.1").read_text().splitlines()
    assert kept[-1] == "line 999" and 100 < len(kept) <= 112
    assert all(line.startswith("line ") for line in kept)


def test_a_writer_that_does_not_append_leaves_a_hole_that_counts_for_nothing(log: Path) -> None:
    with log.open("wb", buffering=0) as writer:
        writer.write(b"x" * (1 << 20))
        assert log_files.bound(str(log), 8192)
        writer.write(b"after\n")
    assert not log_files.bound(str(log), 8192)


def test_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"x" * 2 * MOST)
    (tmp_path / "a.log").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "b.log")
    (tmp_path / "c.log").mkdir()
    log_files.bound_all(str(tmp_path), MOST)
    assert (tmp_path / "target").stat().st_size == 2 * MOST


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    if os.geteuid():
        pytest.skip("needs root to mount")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("ab", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(b"x" * 4096)


def test_a_full_disk_keeps_the_bound_and_the_last_lines(small_disk: Path) -> None:
    log = small_disk / "overlayd.log"
    log.write_text("".join(f"line {number}\n" for number in range(2000)))
    fill(small_disk)
    assert log_files.bound(str(log), 8192)
    assert log.stat().st_size == 0
    assert Path(f"{log}.1").read_text().splitlines()[-1] == "line 1999"


def test_on_a_full_disk_the_last_words_are_worth_more_than_the_earlier_log(small_disk: Path) -> None:
    (small_disk / "overlayd.log.1").write_bytes(b"x" * 8192)
    fill(small_disk)
    last_words.write(str(small_disk), "the range overlaps")
    assert last_words.read(str(small_disk)) == "the range overlaps"


def test_the_daemons_own_log_is_bounded_and_no_other_file(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    saved = os.dup(2)
    try:
        for path in (log, log.with_name("service.log")):
            with path.open("ab") as file:
                os.dup2(file.fileno(), 2)
            handler = log_lines.BoundedHandler(str(log), MOST)
            handler.setStream(os.fdopen(os.dup(2), "w", buffering=1))
            for number in range(200):
                handler.emit(logging.LogRecord("x", logging.INFO, "", 0, f"record {number}", None, None))
    finally:
        os.dup2(saved, 2)
        os.close(saved)
    assert log.stat().st_size <= MOST + 20
    assert (Path(f"{log}.1").read_text() + log.read_text()).endswith("record 198\nrecord 199\n")
    assert log.with_name("service.log").stat().st_size > MOST
