"""Connections to etcd's endpoints: one request and its answer, or a stream of lines.

An exchange goes to the endpoint that answered last. An endpoint that is silent is given up after `HASTE` seconds while
another one is left to try, after `PATIENCE` seconds if it is the last. A request that is not the last try asks for a
leader, so a member that is cut off from the others answers with an error at once; the last try waits for an election.
Each thread has its own connections.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from cni.daemon import settings as settings_module
from cni.daemon.cluster.certificates import Certificates
from cni.daemon.cluster.connection import connected, end_stream, is_usable, unreachable
from cni.daemon.cluster.etcd_protocol import read_answer, read_token
from cni.daemon.cluster.etcd_response import LONGEST, check_form, read_line
from cni.daemon.cluster.store import (
    HASTE,
    PATIENCE,
    QUIET,
    UNAUTHENTICATED,
    StoreError,
    TooLarge,
    Unreachable,
    WrongServer,
)
from cni.daemon.cluster.store_clock import StoreClock
from cni.host.own_networks import has_own_address
from cni.host.worker import beat

T = TypeVar("T")


class Transport:
    """The connections of one client. Any thread may use it."""

    def __init__(self, where: settings_module.Etcd, note: Callable[[str, str], None]) -> None:
        """`note`: sets the problem of a code to a text, or clears it with an empty text."""
        self._where = where
        self._urls = [urlsplit(url) for url in where.endpoints]
        self._first = 0  # the endpoint that is asked first
        self._token = ""
        self._local = threading.local()
        self._failed: dict[tuple[int, str], float] = {}  # endpoint and address that did not answer, and when
        self._streams: dict[socket.socket, tuple[int, str]] = {}  # the open streams: endpoint and address of each
        self._lock = threading.Lock()  # guards `_streams`
        files = {"ca_file": where.ca_file, "cert_file": where.cert_file, "key_file": where.key_file}
        self.certificates, self._clock = Certificates(files, "etcd", note), StoreClock(note)
        self.local_address = ""

    def call(self, path: str, body: dict[str, Any], read: Callable[[dict[str, Any]], T]) -> T:
        """One exchange with the first endpoint that answers; `read` makes a value of the answer. Raises StoreError."""
        failures: list[Unreachable] = []
        for n in range(len(self._urls)):
            at = (self._first + n) % len(self._urls)
            haste = n < len(self._urls) - 1
            beat(4 * PATIENCE)
            try:
                answer = read(self._authenticated(at, path, body, haste))
            except Unreachable as error:
                failures.append(self._named(at, error))
                continue
            self._first = at
            return answer
        kind = WrongServer if any(isinstance(error, WrongServer) for error in failures) else Unreachable
        raise kind("; ".join(map(str, failures)))

    def _named(self, at: int, error: Unreachable) -> Unreachable:
        """The error with the name of its endpoint."""
        return type(error)(f"{self._urls[at].netloc.rpartition('@')[2]}: {error}")

    def lines(self, path: str, body: dict[str, Any]) -> Iterator[bytes]:
        """The lines of a streaming answer of the endpoint that answered last. Ends after `QUIET` seconds without a
        line. The first line must come within `PATIENCE` seconds. Raises StoreError."""
        at = self._first
        try:
            with contextlib.closing(self._connect(at, PATIENCE)) as connection:
                yield from self._lines_on(connection, at, path, body)
        except Unreachable as error:
            self._pass_on(at)
            raise self._named(at, error) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._pass_on(at)
            raise self._named(at, unreachable(error)) from error

    def _lines_on(
        self, connection: http.client.HTTPConnection, at: int, path: str, body: dict[str, Any]
    ) -> Iterator[bytes]:
        stream = connection.sock
        connection.request("POST", path, json.dumps(body), self._headers(needs_leader=True))
        response = connection.getresponse()
        check_form(response)
        if response.status != http.HTTPStatus.OK:
            read_answer(response.status, response.read(LONGEST))
        yield read_line(response)
        stream.settimeout(QUIET)
        with self._lock:
            self._streams[stream] = at, stream.getpeername()[0]
        try:
            while True:
                try:
                    line = read_line(response)
                except TimeoutError:
                    return
                yield line
        finally:
            with self._lock:
                self._streams.pop(stream, None)

    def probe_streams(self, path: str, body: dict[str, Any]) -> None:
        """Make one exchange with the endpoint of every open stream. If it is not answered, or the stream has a former
        address of this host, end the stream, which raises Unreachable in the thread that reads the stream."""
        with self._lock:
            streams = dict(self._streams)
        for stream, (at, address) in streams.items():
            beat(4 * PATIENCE)
            try:
                if not self._is_at_home(stream):
                    continue
                self._authenticated(at, path, body, len(self._urls) > 1, address)
            except Unreachable:
                self._note_address(at, address)
                self._pass_on(at)
                self._end(stream)
            except StoreError:
                pass  # it answers

    def _is_at_home(self, stream: socket.socket) -> bool:
        """Whether a stream has an address of this host; it is ended if not."""
        with contextlib.suppress(OSError):  # closed by its reader
            if not has_own_address(stream):
                self._end(stream)
                return False
        return True

    def _end(self, stream: socket.socket) -> None:
        with self._lock:
            if stream in self._streams:
                end_stream(stream)

    def first(self) -> str:
        """The endpoint that is asked first."""
        return self._where.endpoints[self._first]

    def _pass_on(self, at: int) -> None:
        """Ask another endpoint first, if that one was the first."""
        if self._first == at:
            self._first = (at + 1) % len(self._urls)

    # --- users -------------------------------------------------------------------------------------------------------

    def _authenticated(
        self, at: int, path: str, body: dict[str, Any], haste: bool, address: str = ""
    ) -> dict[str, Any]:
        """An exchange with one endpoint, at one address of it if `address` is given, after a log-in if it is due."""
        if self._where.user and not self._token:
            self._log_in(at, haste)
        try:
            return self._exchange(at, path, body, haste, address)
        except StoreError as error:
            if error.code != UNAUTHENTICATED or not self._where.user:
                raise
        self._log_in(at, haste)
        return self._exchange(at, path, body, haste, address)

    def _log_in(self, at: int, haste: bool) -> None:
        password = self._where.password.reveal()
        if self._where.password_file:
            try:
                password = Path(self._where.password_file).read_text().strip()
            except OSError as error:
                raise StoreError(UNAUTHENTICATED, f"cannot read the password of etcd: {error}") from error
            except ValueError:
                raise StoreError(UNAUTHENTICATED, "the password of etcd in password_file is no text") from None
        self._token = ""
        question = {"name": self._where.user, "password": password}
        self._token = read_token(self._exchange(at, "/v3/auth/authenticate", question, haste))

    def _headers(self, needs_leader: bool) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if needs_leader:  # etcd's rpctypes.MetadataRequireLeaderKey, by the gateway's prefix for metadata
            headers["Grpc-Metadata-hasleader"] = "true"
        return headers | ({"Authorization": self._token} if self._token else {})

    # --- the wire ----------------------------------------------------------------------------------------------------

    def _exchange(self, at: int, path: str, body: dict[str, Any], haste: bool, address: str = "") -> dict[str, Any]:
        """One request and its answer on this thread's connection. A reused connection that is stale is replaced
        once. `haste`: another endpoint is left to try."""
        patience = HASTE if haste else PATIENCE
        kept: dict[tuple[int, str], http.client.HTTPConnection] = self._local.__dict__.setdefault("kept", {})
        data, which = json.dumps(body), (at, address)
        while True:
            fresh = which not in kept or not is_usable(kept[which])
            if fresh:
                if which in kept:
                    kept.pop(which).close()
                kept[which] = self._connect(at, patience, address)
            connection = kept[which]
            try:
                connection.sock.settimeout(patience)
                connection.request("POST", path, data, self._headers(needs_leader=haste))
                response = connection.getresponse()
                check_form(response)
                answer = response.read(LONGEST)
                self._clock.heard(response.headers.get("date"), time.time())
                if len(answer) == LONGEST:
                    kept.pop(which).close()
                    raise TooLarge(8, f"an answer of more than {LONGEST} bytes")
                return read_answer(response.status, answer)
            except Unreachable:
                kept.pop(which).close()
                raise
            except (OSError, http.client.HTTPException, ValueError) as error:
                with contextlib.suppress(OSError, AttributeError):
                    self._note_address(at, connection.sock.getpeername()[0])
                kept.pop(which).close()
                stale = isinstance(error, ConnectionError | http.client.HTTPException) and not fresh
                if not stale:
                    raise unreachable(error) from error

    def _note_address(self, at: int, address: str) -> None:
        """Remember that an address of an endpoint did not answer: the next connection goes to another one of the
        name."""
        self._failed[at, address] = time.monotonic()

    def _connect(self, at: int, patience: float, address: str = "") -> http.client.HTTPConnection:
        """A connection to the first address of the endpoint's host that accepts one, those that failed last at the end;
        or to the given address. Raises StoreError."""
        url = self._urls[at]
        host, port = url.hostname or "", url.port or 2379
        try:
            results = socket.getaddrinfo(address or host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise Unreachable(f"cannot look up {host}: {error}") from error
        addresses = list(dict.fromkeys(str(result[4][0]) for result in results))
        addresses.sort(key=lambda candidate: self._failed.get((at, candidate), 0.0))
        failures: dict[str, None] = {}
        for n, candidate in enumerate(addresses):
            seconds = patience if n == len(addresses) - 1 else min(patience, HASTE)
            try:
                connection, self.local_address = connected(url, candidate, port, seconds, self.certificates)
            except OSError as error:
                self._note_address(at, candidate)
                failures[str(unreachable(error))] = None
                continue
            self._failed.pop((at, candidate), None)
            return connection
        raise Unreachable("; ".join(failures))
