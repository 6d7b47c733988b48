"""The document as it changes, for all pages that are open; nothing is asked while none is."""

from __future__ import annotations

import contextlib
import threading
import time

import msgspec

from cni.cli import ask, events
from cni.cli.ui import document

AGAIN = 2.0  # seconds after which the daemon is asked again without an event: counters and ages have none
SETTLE = 0.2  # seconds from an event to the question: one seldom comes alone


class Live:
    """Follows one daemon. Thread-safe."""

    def __init__(self, run_dir: str) -> None:
        self._run_dir = run_dir
        self._changed = threading.Condition()
        self._pages, self._number, self._text = 0, 0, b""
        self._runs = False

    def opened(self) -> None:
        """A page was opened."""
        with self._changed:
            self._pages += 1
            if not self._runs:
                self._runs = True
                threading.Thread(target=self._run, daemon=True).start()

    def closed(self) -> None:
        """A page was closed."""
        with self._changed:
            self._pages -= 1

    def after(self, number: int, seconds: float) -> tuple[int, bytes]:
        """The number and the JSON of the document, once it is another than that of `number`, or after `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: self._number != number, seconds)
            return self._number, self._text

    def _run(self) -> None:
        while self._goes_on():
            with contextlib.suppress(ask.NoDaemon, ask.Refused), ask.stream(self._run_dir, "events") as sock:
                for line in events.lines(sock, AGAIN):
                    if not self._goes_on() or (line and events.is_end(line)):
                        break
                    time.sleep(SETTLE if line else 0.0)
                    self._look()
            self._look()
            time.sleep(SETTLE)

    def _goes_on(self) -> bool:
        """Whether a page is open; if none is, the thread has ended."""
        with self._changed:
            self._runs = self._pages > 0
            return self._runs

    def _look(self) -> None:
        text = msgspec.json.encode(document.read(self._run_dir))
        with self._changed:
            if text != self._text:
                self._text = text
                self._number += 1
                self._changed.notify_all()
