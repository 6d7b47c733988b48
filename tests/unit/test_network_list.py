"""The network list that a daemon in a container writes, and a list that the runtime prefers."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cni.daemon.events import Events
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.reconcile.network_list import NetworkListKeeper, shadowed
from cni.daemon.settings import NetworkList
from cni.errors import NotAvailable
from cni.host.worker import Crew


@pytest.mark.parametrize(
    ("names", "first"),
    [
        ((), ""),
        (("10-zlayer.conflist",), ""),
        (("10-zlayer.conflist", "20-other.conf"), ""),
        (("05-other.conflist", "10-zlayer.conflist"), "05-other.conflist"),
        (("05-other.conf", "10-zlayer.conflist"), "05-other.conf"),
        (("05-notes.txt", ".05-other.conflist.new", "10-zlayer.conflist"), ""),
        (("05-other.conflist",), ""),  # ours is not there: it is another product's node
    ],
)
def test_the_first_list_by_name_is_the_runtimes(tmp_path: Path, names: tuple[str, ...], first: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    text = shadowed(tmp_path / "10-zlayer.conflist")
    assert (first in text) if first else text == ""


def test_without_a_directory_nothing_is_preferred(tmp_path: Path) -> None:
    assert shadowed(tmp_path / "missing" / "10-zlayer.conflist") == ""


def eventually(what: Callable[[], bool]) -> bool:
    end = time.monotonic() + 10
    while not what() and time.monotonic() < end:
        time.sleep(0.02)
    return what()


def test_the_list_is_written_when_the_daemon_serves_and_stays_at_its_end(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "net.d" / "10-zlayer.conflist"
    source.write_text("{}\n")
    serves: list[bool] = []
    board = ProblemBoard(Events())

    def refuse() -> None:
        if not serves:
            raise NotAvailable("no subnet yet")

    keeper = NetworkListKeeper(NetworkList(source=str(source), target=str(target)), refuse, board, Crew())
    keeper.start()
    try:
        time.sleep(0.8)
        assert not target.exists() and not board.problems()
        serves.append(True)
        assert eventually(lambda: bool(board.problems()))  # there is no such directory
        assert [problem.code for problem in board.problems()] == ["network-list-not-written"]
        target.parent.mkdir()
        assert eventually(target.exists) and target.read_text() == "{}\n"
        assert target.stat().st_mode & 0o777 == 0o644
        assert eventually(lambda: not board.problems())
    finally:
        keeper.stop()
    assert target.exists()
