"""The daemon's log format: one record is one line that begins with its time, whatever text the message quotes."""

from __future__ import annotations

import logging

from cni.printable import printable


class LineFormatter(logging.Formatter):
    """Escapes unprintable characters of a message (`\\n`), and indents each line of a traceback, so that text from
    outside the daemon never begins a line of the log."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:
        text = super().formatException(ei)  # type: ignore[arg-type]
        return "\n".join(f"    {printable(line)}" for line in text.splitlines())


def begin(level: str) -> None:
    """Send the log to standard error from now on. `level`: `log_level` as in the YAML."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("asyncio").setLevel(logging.WARNING)
