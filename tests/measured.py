"""What tests measure, printed at the end of the report. A conftest imports both names."""

from __future__ import annotations

from collections.abc import Callable

import pytest

__all__ = ["measured", "pytest_terminal_summary"]

_LINES: list[str] = []


@pytest.fixture
def measured() -> Callable[[str], None]:
    """Note a line for the end of the report."""
    return _LINES.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the lines once, although each conftest that imports this has the hook."""
    if _LINES:
        terminalreporter.section("measured")
        for line in _LINES:
            terminalreporter.line(line)
        _LINES.clear()
