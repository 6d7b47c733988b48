"""The events of the daemon for readers outside: `zlayer-cni events`, and what `--watch` and `--wait` wait for.

A publisher only appends to the queue of each reader, because it may hold locks. Each reader has a thread that encodes
and sends. A queue is bounded: a reader that falls further behind gets the reason as its last line, and its stream ends.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator

import msgspec

from cni import answers
from cni.daemon.api import event_lines
from cni.daemon.api.cni_socket import Reply
from cni.daemon.events import Event
from cni.errors import TryAgainLater

MOST_READERS = 16
MOST_WAITING = 1024  # events that one reader may be behind
IDLE = 1.0  # seconds after which a reader without an event is asked whether it is still there


class _Queue:
    """The events that one reader has not taken. Thread-safe."""

    def __init__(self) -> None:
        self._ready = threading.Condition()
        self._events: deque[tuple[float, Event]] = deque()
        self._end = ""

    def put(self, event: Event) -> None:
        with self._ready:
            if len(self._events) >= MOST_WAITING:
                self._end = f"the reader is too slow: it was {MOST_WAITING} events behind"
            if not self._end:
                self._events.append((time.time(), event))
            self._ready.notify()

    def end(self, reason: str) -> None:
        with self._ready:
            self._end = self._end or reason
            self._ready.notify()

    def take(self) -> tuple[list[tuple[float, Event]], str]:
        """The events so far, waiting up to IDLE seconds for the first one, and the reason if no more come."""
        with self._ready:
            if not self._events and not self._end:
                self._ready.wait(IDLE)
            taken = list(self._events)
            self._events.clear()
            return taken, self._end


class EventStream:
    """Every reader of the daemon's events. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: set[_Queue] = set()

    def on_event(self, event: Event) -> None:
        """Pass an event to every reader. Never blocks: it appends to queues."""
        if not self._queues:
            return
        with self._lock:
            queues = tuple(self._queues)
        for queue in queues:
            queue.put(event)

    def reply(self) -> Reply:
        """The answer to a reader that comes: an acknowledgement, and then its lines for as long as it stays."""
        queue = _Queue()
        with self._lock:
            if len(self._queues) < MOST_READERS:
                self._queues.add(queue)
                return Reply(0, msgspec.json.encode(answers.Done(done=True)), more=self._lines(queue))
        full = answers.Failure(code=TryAgainLater.code, msg=f"{MOST_READERS} readers follow the events already")
        return Reply(1, msgspec.json.encode(full))

    def close(self) -> None:
        """End every stream: the daemon ends."""
        with self._lock:
            queues = tuple(self._queues)
        for queue in queues:
            queue.end("the daemon ends")

    def _lines(self, queue: _Queue) -> Generator[bytes]:
        """The lines of one reader; an empty one if nothing happened for IDLE seconds."""
        try:
            yield event_lines.begin(time.time())
            while True:
                taken, reason = queue.take()
                lines = [event_lines.line_of(event, unix) for unix, event in taken]
                yield b"".join(event_lines.encode(line) for line in lines if line is not None)
                if reason:
                    yield event_lines.end(time.time(), reason)
                    return
        finally:
            with self._lock:
                self._queues.discard(queue)
