"""The daemon's log: one record, one line that begins with its time, whatever names and keys are quoted in it."""

from __future__ import annotations

import logging

from cni.printable import printable


class LineFormatter(logging.Formatter):
    """Writes what cannot be printed in a message out (`\\n`), and begins each line of a traceback with spaces, so that
    no text of others' making begins a line of the log."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:
        text = super().formatException(ei)  # type: ignore[arg-type]
        return "\n".join(f"    {printable(line)}" for line in text.splitlines())


def begin(level: str) -> None:
    """The log goes to standard error from now on. `level`: as in the YAML."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("asyncio").setLevel(logging.WARNING)
