"""One line of the log for each ADD, DEL and CHECK, by either socket: `key=value`, separated by spaces.

    verb=ADD socket=cni attachment=8d2f/eth0 network=blue service=web addresses=10.9.1.130 code=0 ms=1.9

A key without a value is left out. A failure is a warning, with the error's message and details.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Iterator, Mapping

from cni.errors import CniError
from cni.printable import printable

log = logging.getLogger(__name__)

LONGEST = 512  # characters of a value; the rest is cut off
_PLAIN = re.compile(r"[!#-<>-\[\]-~]+")  # printable ASCII without space, quotation mark, equals sign and backslash


def line(pairs: Mapping[str, str], longest: int = LONGEST) -> str:
    """The pairs as one line. A value that could be taken for something else is in quotation marks, escaped. Pure."""
    return " ".join(f"{key}={_value(text, longest)}" for key, text in pairs.items() if text)


def _value(text: str, longest: int) -> str:
    if len(text) > longest:
        text = text[:longest] + "..."
    if _PLAIN.fullmatch(text):
        return text
    return '"' + printable(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def write(socket: str, verb: str, facts: Mapping[str, str], seconds: float, error: Exception | None) -> None:
    """Write the line of one call. `socket`: `cni` or `overlay`; `facts`: what is known of the attachment, by key."""
    level = logging.INFO if error is None else logging.WARNING
    if not log.isEnabledFor(level):
        return
    pairs = {"verb": verb, "socket": socket, **facts, "code": "0", "ms": f"{seconds * 1000:.1f}"}
    if isinstance(error, CniError):
        pairs |= {"code": str(error.code), "msg": error.msg, "details": error.details}
    elif error is not None:
        pairs |= {"code": str(CniError.code), "msg": f"{type(error).__name__}: {error}"}
    log.log(level, "%s", line(pairs), extra={"fields": pairs})


@contextlib.contextmanager
def entry(socket: str, verb: str, facts: dict[str, str]) -> Iterator[None]:
    """Write the line of the call that runs inside, when it ends. `facts` may grow meanwhile."""
    began = time.monotonic()
    try:
        yield
    except Exception as error:
        write(socket, verb, facts, time.monotonic() - began, error)
        raise
    write(socket, verb, facts, time.monotonic() - began, None)
