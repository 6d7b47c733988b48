"""The daemon's log format: one record is one line that begins with its time, whatever text the message quotes.

`text` has the time, the level, the component, and then the message, which is `key=value` for calls and problems;
`logfmt` is `key=value` throughout; `json` is an object a line. Equal lines that repeat are counted (log_repeats.py).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import TextIO

from cni import log_files
from cni.daemon import call_log
from cni.daemon.log_repeats import Repeats
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


def fields_of(record: logging.LogRecord) -> dict[str, str]:
    """A record as keys and values: `extra={"fields": ...}` of the record, or its message as `msg`."""
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z"
    pairs = {"time": at, "level": record.levelname.lower(), "logger": record.name}
    fields = getattr(record, "fields", None)
    pairs |= dict(fields) if isinstance(fields, Mapping) else {"msg": record.getMessage()}
    if record.exc_info:
        pairs["traceback"] = logging.Formatter().formatException(record.exc_info)
    return pairs


class KeyValueFormatter(logging.Formatter):
    """`key=value`, separated by spaces; other characters than those of a plain word are in quotation marks."""

    def format(self, record: logging.LogRecord) -> str:
        return call_log.line(fields_of(record), longest=1 << 16)


class JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII; every value is a text."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(fields_of(record))


class BoundedHandler(logging.StreamHandler[TextIO]):
    """Writes to standard error. If that is the log file in the run directory, where the plugin that started the daemon
    sent it, the file is bounded; any other file belongs to the program that opened it."""

    def __init__(self, path: str, most: int = log_files.MOST) -> None:
        super().__init__()
        self._path, self._most = path, most
        self._repeats, self._judging = Repeats(), threading.Lock()

    def handle(self, record: logging.LogRecord) -> bool:
        """Write a record, unless it repeats; and the counts of others that are due."""
        now = time.monotonic()
        with self._judging:
            told = self._repeats.due(now)
            writes = self._repeats.writes((record.name, record.levelno, record.getMessage()), now)
        for (name, level, message), count, seconds in told:
            text = f"{message} (and {count} more times in {seconds:.0f} s)"
            super().handle(logging.LogRecord(name, level, "", 0, text, None, None))
        return bool(super().handle(record)) if writes else False

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


def begin(level: str, run_dir: str, form: str = "text") -> None:
    """Send the log to standard error from now on. `level`, `form`: `log_level` and `log_format` as in the YAML."""
    handler = BoundedHandler(f"{run_dir}/{LOG_NAME}")
    text = LineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter({"logfmt": KeyValueFormatter(), "json": JsonFormatter()}.get(form, text))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("asyncio").setLevel(logging.WARNING)
