"""`--watch` of the listings and `status --wait`: both follow the daemon's events, and ask again when one comes."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterator

from cni.cli import ask, events

AGAIN = 10.0  # seconds after which a listing is asked again without an event: counters and ages have none
SETTLE = 0.2  # seconds from an event to the listing: one seldom comes alone
STEP = 1.0  # seconds between two attempts while no daemon answers
CLEAR = "\x1b[H\x1b[2J"  # the cursor to the first place, and the screen empty


def follow(run_dir: str, show: Callable[[], int]) -> int:
    """Run `show` now and after every event, and print what it printed if that has changed; until Ctrl-C. On a terminal
    each listing replaces the one before. Raises NoDaemon, Refused."""
    before = ""
    with contextlib.suppress(KeyboardInterrupt), ask.stream(run_dir, "events") as sock:
        for _ in _turns(events.lines(sock, AGAIN)):
            text = _printed(show)
            if text != before:
                sys.stdout.write((CLEAR if sys.stdout.isatty() else "\n" * bool(before)) + text)
                sys.stdout.flush()
            before = text
        raise ask.NoDaemon(f"the daemon on {run_dir} has ended the stream of events")
    return 0


def _turns(lines: Iterator[bytes]) -> Iterator[None]:
    """One at once, with the first line, and one after each line but the last of the stream."""
    for line in lines:
        if line and events.is_end(line):
            return
        time.sleep(SETTLE if line else 0.0)
        yield


def _printed(show: Callable[[], int]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as text:
        show()
    return text.getvalue()


def wait(run_dir: str, show: Callable[[], int], seconds: float) -> int:
    """Run `show` until its exit code is 0 or the time is over, and print what it printed last. A daemon that does not
    answer yet is waited for. Raises NoDaemon if none answers at the end, Refused."""
    end = time.monotonic() + seconds
    while True:
        code, text, failure = ask.NOT_RUNNING, "", None
        try:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                code = show()
            text = out.getvalue()
        except ask.NoDaemon as error:
            failure = error
        left = end - time.monotonic()
        if code == 0 or left <= 0:
            if failure is not None:
                raise failure
            sys.stdout.write(text)
            return code
        _pause(run_dir, min(STEP, left))


def _pause(run_dir: str, seconds: float) -> None:
    """Wait for an event, or for `seconds`."""
    end = time.monotonic() + seconds
    with contextlib.suppress(ask.NoDaemon, ask.Refused), ask.stream(run_dir, "events") as sock:
        lines = events.lines(sock, seconds)
        next(lines, b"")  # the stream begins
        next(lines, b"")
        return
    time.sleep(max(0.0, end - time.monotonic()))
