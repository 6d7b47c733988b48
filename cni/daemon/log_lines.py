"""The daemon's log format: one record is one line that begins with its time, whatever text the message quotes."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import TextIO

from cni import log_files
from cni.daemon.run_dir import LOG_NAME
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


class BoundedHandler(logging.StreamHandler[TextIO]):
    """Writes to standard error. If that is the log file in the run directory, where the plugin that started the daemon
    sent it, the file is bounded; any other file belongs to the program that opened it."""

    def __init__(self, path: str, most: int = log_files.MOST) -> None:
        super().__init__()
        self._path, self._most = path, most

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record. Called with the handler's lock held."""
        with contextlib.suppress(OSError):
            status = os.fstat(2)
            if status.st_size > self._most and os.path.samestat(status, os.stat(self._path)):  # noqa: PTH116
                log_files.bound(self._path, self._most)
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """A record that the full disk does not take is lost: standard error cannot say so either."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def begin(level: str, run_dir: str) -> None:
    """Send the log to standard error from now on. `level`: `log_level` as in the YAML."""
    handler = BoundedHandler(f"{run_dir}/{LOG_NAME}")
    handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("asyncio").setLevel(logging.WARNING)
