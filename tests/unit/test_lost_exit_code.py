"""The single file without the launcher cannot return its exit code while SIGCHLD is ignored, and says so."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

import pytest

from cni.errors import InvalidEnvironment
from cni.plugin import main as plugin


@pytest.fixture
def ignored() -> Iterator[None]:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGCHLD, before)


def test_an_add_is_refused(monkeypatch: pytest.MonkeyPatch, ignored: None) -> None:
    monkeypatch.setattr(sys, "_MEIPASS", "/tmp/_MEI00001234abcdef", raising=False)
    with pytest.raises(InvalidEnvironment, match="SIGCHLD"):
        plugin._refuse_lost_exit_code()


def test_the_unpacked_program_and_the_launcher_return_it(ignored: None) -> None:
    plugin._refuse_lost_exit_code()


def test_nothing_is_lost_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "_MEIPASS", "/tmp/_MEI00001234abcdef", raising=False)
    plugin._refuse_lost_exit_code()
