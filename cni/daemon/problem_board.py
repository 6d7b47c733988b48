"""The problems that exist on this node now; the log has a line when one begins and when it ends.

A component notes a problem under its code and a subject (a device, a record, a step), and clears it under the same
pair. A step that may fail runs inside `step`: an exception becomes a problem, and the steps after it run.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

from cni.daemon.events import Events, ProblemBegan, ProblemEnded
from cni.errors import CniError
from cni.printable import one_line
from cni.problems import REGISTRY, Problem

log = logging.getLogger(__name__)


class ProblemBoard:
    """Holds problems by code and subject. Thread-safe; no method waits for I/O except the log's."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._lock = threading.Lock()
        self._noted: dict[tuple[str, str], Problem] = {}

    def note(self, code: str, subject: str, text: str) -> None:
        """Add the problem, or change its text. Raises KeyError for an unregistered code."""
        severity, text = REGISTRY[code].severity, one_line(text)
        problem = Problem(code, text)
        with self._lock:
            before, self._noted[code, subject] = self._noted.get((code, subject)), problem
        if before != problem:
            log.log(
                logging.ERROR if severity == "error" else logging.WARNING,
                "problem=%s %s",
                code,
                text,
                extra={"fields": {"problem": code, "text": text}},
            )
            self._events.publish(ProblemBegan(problem))

    def clear(self, code: str, subject: str = "") -> None:
        """Remove the problem if it exists."""
        with self._lock:
            before = self._noted.pop((code, subject), None)
        if before is not None:
            log.info("resolved=%s %s", code, before.text, extra={"fields": {"resolved": code, "text": before.text}})
            self._events.publish(ProblemEnded(before))

    def set(self, code: str, subject: str, text: str) -> None:
        """`note` if `text` is not empty, else `clear`."""
        if text:
            self.note(code, subject, text)
        else:
            self.clear(code, subject)

    def set_all(self, code: str, texts: dict[str, str]) -> None:
        """Set the problems of this code to `texts` (text by subject); clear every other problem of the code."""
        with self._lock:
            gone = [subject for noted, subject in self._noted if noted == code and subject not in texts]
        for subject in gone:
            self.clear(code, subject)
        for subject, text in texts.items():
            self.note(code, subject, text)

    def subjects(self, code: str) -> frozenset[str]:
        """The subjects that have a problem of this code now."""
        with self._lock:
            return frozenset(subject for noted, subject in self._noted if noted == code)

    @contextlib.contextmanager
    def step(self, code: str, subject: str, what: str) -> Iterator[None]:
        """Run one step: an exception becomes the problem `code` with the text "`what`: reason"; success clears it.

        An exception that is neither CniError nor OSError is also logged with its traceback.
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
        """All problems that exist now, oldest first."""
        with self._lock:
            return list(self._noted.values())
