"""The connection that all calls share: dialled by the first, replaced when it breaks (contract 3.1 and 3.3).

Where a broken connection cannot be replaced at once, the one that a later call makes re-establishes all the same.
ZLayer's client re-establishes only on a connection that replaces a broken one within the same call.
"""

import threading
from collections.abc import Callable
from typing import Protocol, TypeVar

from cni.overlay.client import Client, Deadline
from cni.overlay.errors import DeadlinePassed, TransportError

T = TypeVar("T")


class Dialer(Protocol):
    """Where the daemon is, and how a new connection to it is made."""

    @property
    def address(self) -> str:
        """The socket's path, or the pipe's name."""

    def dial(self, deadline: Deadline) -> Client:
        """A new connection. Raises TransportError."""


class Session:
    """One slot for one connection. A caller that finds it being dialled waits for that dial."""

    def __init__(self, dialer: Dialer, reestablish: Callable[[Client, Deadline], None]) -> None:
        """`reestablish` is called on a connection that replaces a broken one; it must not raise."""
        self._dialer = dialer
        self._reestablish = reestablish
        self._connection: Client | None = None
        self._broken = False
        """Whether a connection broke that has not been replaced: the next one, whenever it comes, re-establishes."""
        self._lock = threading.Lock()

    def connection(self, deadline: Deadline) -> Client:
        """The connection, dialled if there is none. Raises TransportError."""
        with _LockedWithin(self._lock, self._dialer.address, deadline):
            if self._connection is None:
                self._connection = self._dialled(deadline)
            return self._connection

    def run(self, work: Callable[[Client], T], deadline: Deadline) -> T:
        """The result of `work` on the connection; if the connection breaks meanwhile, of `work` on a new one.

        Not repeated: the daemon's refusals, a dial that failed, and a deadline that has passed. After the
        second try the result is final. A connection that broke stays in the slot, closed, so that the next call
        knows that it replaces one and re-establishes.
        """
        conn = self.connection(deadline)
        try:
            return work(conn)
        except DeadlinePassed:
            raise
        except TransportError:
            conn.close()
        return work(self._replacement(conn, deadline))

    def close(self) -> None:
        """Hang up. The next call dials."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None
            self._broken = False

    def _replacement(self, broken: Client, deadline: Deadline) -> Client:
        with _LockedWithin(self._lock, self._dialer.address, deadline):
            if self._connection is broken or self._connection is None:
                self._connection, self._broken = None, True
                self._connection = self._dialled(deadline)
            return self._connection

    def _dialled(self, deadline: Deadline) -> Client:
        conn = self._dialer.dial(deadline)
        if self._broken:
            self._broken = False
            self._reestablish(conn, deadline)
        return conn


class _LockedWithin:
    """The lock, taken before the deadline."""

    def __init__(self, lock: threading.Lock, path: str, deadline: Deadline) -> None:
        self._lock, self._path, self._deadline = lock, path, deadline

    def __enter__(self) -> None:
        if not self._lock.acquire(timeout=self._deadline.left()):
            raise DeadlinePassed(
                f"overlayd: {self._path} could not be reached within {self._deadline.seconds:g} s",
                "another call of this program is still trying",
            )

    def __exit__(self, *_: object) -> None:
        self._lock.release()
