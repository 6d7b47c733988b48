"""Whose extraction directory it is, and whether he is still there: also when the clock has been set meanwhile."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni import tempdir_sweeper


@pytest.fixture
def single_file(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A living process whose program ends like a single file."""
    sleep = shutil.which("sleep")
    assert sleep is not None
    program = tmp_path / "program"
    program.write_bytes(Path(sleep).read_bytes() + tempdir_sweeper.ARCHIVE + bytes(80))
    program.chmod(0o755)
    process = subprocess.Popen([str(program), "60"])
    yield process
    process.kill()
    process.wait()


def directory_of(pid: int, place: Path, age: float) -> Path:
    path = place / f"_MEI{pid:08x}abcdef"
    path.mkdir(parents=True)
    (path / tempdir_sweeper.MARK).touch()
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def test_a_clock_that_was_set_does_not_make_a_living_one_dead(
    single_file: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """By its time the directory is a day older than its bootloader: the clock was put forward in between."""
    place = tmp_path / "temporary"
    path = directory_of(single_file.pid, place, 86400)
    assert tempdir_sweeper.sweep((str(place),)) == []
    single_file.kill()
    single_file.wait()
    assert tempdir_sweeper.sweep((str(place),)) == [str(path)]


def test_a_directory_from_the_future_stays_for_now(tmp_path: Path) -> None:
    """The clock was set back: the time at which it was made is unknown."""
    path = directory_of(0x7FFFFFFF, tmp_path, -3600)
    assert tempdir_sweeper.sweep((str(tmp_path),)) == []
    os.utime(path, (time.time() - 60, time.time() - 60))
    assert tempdir_sweeper.sweep((str(tmp_path),)) == [str(path)]


def test_places_that_calls_tell_of_are_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempdir_sweeper, "_noted", {})
    path = directory_of(0x7FFFFFFF, tmp_path / "theirs", 60)
    tempdir_sweeper.note(f"{tmp_path}/theirs/_MEI00000001abcdef")
    for word in ("", "relative/_MEI1", "/etc/passwd", f"{tmp_path}/theirs/other"):
        tempdir_sweeper.note(word)
    assert list(tempdir_sweeper._noted) == [f"{tmp_path}/theirs"]
    assert str(path) in tempdir_sweeper.sweep()
    for n in range(100):
        tempdir_sweeper.note(f"/nowhere/{n}/_MEI00000001abcdef")
    assert len(tempdir_sweeper._noted) <= 16
