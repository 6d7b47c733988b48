"""Locks in a directory of one user's alone, and which directories are that."""

import os
from pathlib import Path

import pytest

from cni.host import locks
from cni.host.netns import Presence


def test_a_lock_is_held_by_one_until_it_is_let_go(tmp_path: Path) -> None:
    place = tmp_path / "locks"
    one = locks.hold("a", place)
    assert one is not None
    assert locks.hold("a", place) is None
    two = locks.hold("b", place)
    assert two is not None
    locks.release(one, "a", place)
    again = locks.hold("a", place)
    assert again is not None
    locks.release(again, "a", place)
    locks.release(two, "b", place)
    assert list(place.iterdir()) == []


def test_the_locks_directory_is_one_users_alone(tmp_path: Path) -> None:
    place = tmp_path / "locks"
    place.mkdir(mode=0o755)
    place.chmod(0o755)
    with pytest.raises(PermissionError, match="alone"):
        locks.hold("a", place)
    place.rmdir()
    place.symlink_to(tmp_path)
    with pytest.raises(OSError):
        locks.hold("a", place)


def test_presences_know_of_each_other(tmp_path: Path) -> None:
    place = tmp_path / "locks"
    one = Presence(place)
    assert one.alone()
    two = Presence(place)
    assert not one.alone() and not two.alone()
    two.close()
    assert one.alone()
    one.close()
    assert list(place.iterdir()) == []


def test_presences_find_each_other_again_after_their_file_was_deleted(tmp_path: Path) -> None:
    place = tmp_path / "locks"
    one, two = Presence(place), Presence(place)
    (file,) = place.iterdir()
    file.unlink()
    one.alone()  # takes its place in a new file
    assert not two.alone()
    assert not one.alone()
    one.close()
    two.close()


@pytest.mark.parametrize(("mode", "safe"), [(0o755, True), (0o1777, True), (0o777, False), (0o700, True)])
def test_a_directory_in_which_others_write_is_told(tmp_path: Path, mode: int, safe: bool) -> None:
    place = tmp_path / "place"
    inner = place / "inner"
    inner.mkdir(parents=True)
    place.chmod(mode)
    assert (locks.others_may_write(inner) == "") is safe
    assert locks.is_shared(place) is bool(mode & 0o002)


@pytest.mark.root
def test_a_directory_of_another_user_is_told(tmp_path: Path) -> None:
    place = tmp_path / "place"
    inner = place / "inner"
    inner.mkdir(parents=True)
    os.chown(place, 65534, 65534)
    assert "65534" in locks.others_may_write(inner)
    os.chown(place, 0, 65534)
    place.chmod(0o775)
    assert "group 65534" in locks.others_may_write(inner)
    assert locks.others_may_write(inner, frozenset({65534})) == ""


def test_a_sweep_takes_what_nobody_holds(tmp_path: Path) -> None:
    place = tmp_path / "locks"
    free, held = locks.hold("free", place), locks.hold("held", place)
    shared, _ = locks.join("shared", 1, place)
    assert free is not None and held is not None
    os.close(free)
    assert not locks.sweep(place)
    assert {path.name for path in place.iterdir()} == {"held", "shared"}
    os.close(held)
    os.close(shared)
    assert locks.sweep(place)
    assert not locks.sweep(place), "there is none"
