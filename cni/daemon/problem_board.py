"""The problems that exist on this node now, and their beginnings and ends in the log.

A component notes a problem under its code and a subject (a device, a record, a step), and clears it under the same. A
step that may fail runs inside `step`: what it raises becomes a problem and does not reach the steps after it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

from cni.errors import CniError
from cni.printable import one_line
from cni.problems import REGISTRY, Problem

log = logging.getLogger(__name__)


class ProblemBoard:
    """Holds problems by code and subject. Every method may be called from any thread and never waits for I/O but the
    log's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._noted: dict[tuple[str, str], Problem] = {}

    def note(self, code: str, subject: str, text: str) -> None:
        """The problem exists from now on, or has this text now. Raises KeyError for an unregistered code."""
        severity, text = REGISTRY[code].severity, one_line(text)
        problem = Problem(code, text)
        with self._lock:
            before, self._noted[code, subject] = self._noted.get((code, subject)), problem
        if before != problem:
            log.log(logging.ERROR if severity == "error" else logging.WARNING, "problem=%s %s", code, text)

    def clear(self, code: str, subject: str = "") -> None:
        """The problem exists no more, if it did."""
        with self._lock:
            before = self._noted.pop((code, subject), None)
        if before is not None:
            log.info("resolved=%s %s", code, before.text)

    def set(self, code: str, subject: str, text: str) -> None:
        """`note` where there is a text, else `clear`."""
        if text:
            self.note(code, subject, text)
        else:
            self.clear(code, subject)

    def set_all(self, code: str, texts: dict[str, str]) -> None:
        """The problems of this code are these, by subject; every other of the code is cleared."""
        with self._lock:
            gone = [subject for held, subject in self._noted if held == code and subject not in texts]
        for subject in gone:
            self.clear(code, subject)
        for subject, text in texts.items():
            self.note(code, subject, text)

    def subjects(self, code: str) -> frozenset[str]:
        """The subjects that have the problem now."""
        with self._lock:
            return frozenset(subject for held, subject in self._noted if held == code)

    @contextlib.contextmanager
    def step(self, code: str, subject: str, what: str) -> Iterator[None]:
        """Run one step: what it raises is the problem `code` with the text "`what`: reason"; success clears it.

        An exception that is neither CniError nor OSError is logged with its traceback, and is a problem as well.
        """
        try:
            yield
        except CniError as error:
            reason = f"{error.msg}: {error.details}" if error.details else error.msg
        except OSError as error:
            reason = str(error)
        except Exception as error:
            log.exception("unexpected error in the step: %s", what)
            reason = f"{type(error).__name__}: {error}"
        else:
            self.clear(code, subject)
            return
        self.note(code, subject, f"{what}: {reason}")

    def problems(self) -> list[Problem]:
        """All that exist now, in the order of their beginning."""
        with self._lock:
            return list(self._noted.values())
