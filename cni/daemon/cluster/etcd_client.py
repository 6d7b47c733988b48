"""A small client of etcd v3, by the JSON gateway that every etcd serves beside gRPC (etcd's API reference, v3.4 on).

The client selects the endpoint and renews the token, and does nothing else on its own. Keys are text, values bytes.
Any thread may use one `EtcdClient`: each thread has its own connection. The caller keeps the lease and the last
revision.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cni.daemon import settings as settings_module
from cni.daemon.cluster.etcd_protocol import (
    UNAUTHENTICATED,
    Compacted,
    Compare,
    EtcdError,
    Event,
    KeyValue,
    Step,
    TooLarge,
    Unreachable,
    after,
    b64,
    compare,
    read_answer,
    read_lease,
    read_page,
    read_token,
    read_transaction,
    read_watch,
    step,
)
from cni.host.worker import beat

if TYPE_CHECKING:
    import ssl

log = logging.getLogger(__name__)

PATIENCE = 5.0  # seconds: the time-out of one exchange
QUIET = 60.0  # seconds of silence after which a watch is restarted: that is cheap, and reveals a dead connection
PAGE = 1000  # keys in one answer
LONGEST = 8 << 20  # bytes of one answer, or of one line of a watch
MOST = 200_000  # keys below one prefix
MOST_BYTES = 256 << 20  # of values below one prefix
_ALIVE = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))


class EtcdClient:
    """The cluster's etcd."""

    def __init__(self, where: settings_module.Etcd) -> None:
        self._where = where
        self._urls = [urlsplit(url) for url in where.endpoints]
        self._first = 0
        self._token = ""
        self._local = threading.local()
        self._tls: ssl.SSLContext | None = None
        self.local_address = ""

    # --- keys --------------------------------------------------------------------------------------------------------

    def read(self, prefix: str, revision: int = 0, most: int = MOST) -> tuple[list[KeyValue], int]:
        """Every key below the prefix as of one revision (0: the present one), and that revision. Raises EtcdError.

        If there are more than `most` keys, or more than `MOST_BYTES` of values, the rest is left out, and the last item
        is the prefix itself with `cut` set.
        """
        start, end, limit = prefix.encode(), after(prefix.encode()), PAGE
        items: list[KeyValue] = []
        size = 0
        while True:
            try:
                page, now, more = self._page(start, end, revision, limit)
            except TooLarge:
                if limit > 1:
                    limit = max(1, limit // 8)
                    continue
                page, now, more = self._page(start, end, revision, 1, keys_only=True)
                page = [replace(item, cut=True) for item in page]
            revision = revision or now
            items += page
            size += sum(len(item.value) for item in page)
            if not more or not page:
                return items, revision
            if len(items) >= most or size >= MOST_BYTES:
                return [*items, KeyValue(prefix, b"", cut=True)], revision
            start = page[-1].raw + b"\0"

    def _page(
        self, start: bytes, end: bytes, revision: int, limit: int, keys_only: bool = False
    ) -> tuple[list[KeyValue], int, bool]:
        body: dict[str, Any] = {"key": b64(start), "range_end": b64(end), "limit": str(limit), "keys_only": keys_only}
        if revision:
            body["revision"] = str(revision)
        return read_page(self._call("/v3/kv/range", body))

    def transact(
        self, when: Sequence[Compare], then: Sequence[Step], other: Sequence[Step] = ()
    ) -> tuple[bool, list[KeyValue]]:
        """Do `then` if every condition holds, else `other`, atomically. Returns whether the conditions held, and what
        the `Get`s found. Raises EtcdError."""
        answer = self._call(
            "/v3/kv/txn",
            {
                "compare": [compare(condition) for condition in when],
                "success": [step(operation) for operation in then],
                "failure": [step(operation) for operation in other],
            },
        )
        return read_transaction(answer)

    def put(self, key: str, value: bytes, lease: int = 0) -> None:
        """Write a key, under a lease unless it is 0. Raises EtcdError, with code 5 if the lease has ended."""
        self._call("/v3/kv/put", {"key": b64(key.encode()), "value": b64(value), "lease": str(lease)})

    # --- leases ------------------------------------------------------------------------------------------------------

    def grant(self, seconds: int) -> int:
        """A new lease with a life of `seconds`. Raises EtcdError."""
        return read_lease(self._call("/v3/lease/grant", {"TTL": str(seconds)}))[0]

    def keep_alive(self, lease: int) -> bool:
        """Renew the lease for its full life; False if it has ended. Raises EtcdError."""
        return read_lease(self._call("/v3/lease/keepalive", {"ID": str(lease)}))[1] > 0

    def revoke(self, lease: int) -> None:
        """End the lease and delete its keys. Errors are ignored: a lease that is not revoked expires."""
        with contextlib.suppress(EtcdError):
            self._call("/v3/lease/revoke", {"ID": str(lease)})

    # --- watching ----------------------------------------------------------------------------------------------------

    def watch(self, prefix: str, revision: int) -> Iterator[tuple[int, list[Event]]]:
        """The changes below the prefix from `revision` on, as (revision, events); an item without events reports
        progress. Ends after `QUIET` seconds of silence; the caller continues one after the last revision. Raises
        Compacted, EtcdError.
        """
        body = {
            "create_request": {
                "key": b64(prefix.encode()),
                "range_end": b64(after(prefix.encode())),
                "start_revision": str(revision),
                "progress_notify": True,
                "fragment": True,  # otherwise one line may hold the events of a thousand keys
            }
        }
        with contextlib.closing(self._connect(self._urls[self._first], QUIET)) as connection:
            try:
                connection.request("POST", "/v3/watch", json.dumps(body), self._headers())
                response = connection.getresponse()
                while line := response.readline(LONGEST):
                    if not line.endswith(b"\n"):
                        raise Compacted(11, f"a change of more than {LONGEST} bytes")
                    yield read_watch(line)
            except TimeoutError:
                return
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise Unreachable(f"the watch on etcd ended: {error}") from error

    # --- the wire ----------------------------------------------------------------------------------------------------

    def _call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """One exchange with the first endpoint that answers. Raises EtcdError."""
        problems = []
        for n in range(len(self._urls)):
            at = (self._first + n) % len(self._urls)
            beat(2 * PATIENCE)
            try:
                answer = self._authenticated(at, path, body)
            except Unreachable as error:
                problems.append(f"{self._urls[at].netloc.rpartition('@')[2]}: {error}")
                continue
            self._first = at
            return answer
        raise Unreachable("; ".join(problems))

    def _authenticated(self, at: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if self._where.user and not self._token:
            self._log_in(at)
        try:
            return self._exchange(at, path, body)
        except EtcdError as error:
            if error.code != UNAUTHENTICATED or not self._where.user:
                raise
        self._log_in(at)
        return self._exchange(at, path, body)

    def _log_in(self, at: int) -> None:
        password = self._where.password.reveal()
        if self._where.password_file:
            try:
                password = Path(self._where.password_file).read_text().strip()
            except OSError as error:
                raise EtcdError(UNAUTHENTICATED, f"cannot read the password of etcd: {error}") from error
            except ValueError:
                raise EtcdError(UNAUTHENTICATED, "the password of etcd in password_file is no text") from None
        self._token = ""
        answer = self._exchange(at, "/v3/auth/authenticate", {"name": self._where.user, "password": password})
        self._token = read_token(answer)

    def _headers(self) -> dict[str, str]:
        return {"Content-Type": "application/json"} | ({"Authorization": self._token} if self._token else {})

    def _exchange(self, at: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """One request and its answer on this thread's connection. A reused connection that is stale is replaced
        once."""
        kept: dict[int, http.client.HTTPConnection] = self._local.__dict__.setdefault("kept", {})
        data = json.dumps(body)
        while True:
            fresh = at not in kept
            try:
                if fresh:
                    kept[at] = self._connect(self._urls[at], PATIENCE)
                kept[at].request("POST", path, data, self._headers())
                response = kept[at].getresponse()
                answer = response.read(LONGEST)
                if len(answer) == LONGEST:
                    kept.pop(at).close()
                    raise TooLarge(8, f"an answer of more than {LONGEST} bytes")
                return read_answer(response.status, answer)
            except (OSError, http.client.HTTPException, ValueError) as error:
                if at in kept:
                    kept.pop(at).close()
                stale = isinstance(error, ConnectionError | http.client.HTTPException) and not fresh
                if not stale:
                    raise Unreachable(str(error) or type(error).__name__) from error

    def _connect(self, url: Any, patience: float) -> http.client.HTTPConnection:
        host, port = url.hostname or "", url.port or 2379
        connection: http.client.HTTPConnection
        if url.scheme == "https":
            connection = http.client.HTTPSConnection(host, port, timeout=PATIENCE, context=self._context())
        else:
            connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
        try:
            connection.connect()
        except OSError as error:
            raise Unreachable(str(error)) from error
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _ALIVE:
            connection.sock.setsockopt(socket.IPPROTO_TCP, option, value)
        connection.sock.settimeout(patience)
        self.local_address = connection.sock.getsockname()[0]
        return connection

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            import ssl

            where = self._where
            try:
                self._tls = ssl.create_default_context(cafile=where.ca_file or None)
                if where.cert_file:
                    self._tls.load_cert_chain(where.cert_file, where.key_file or None)
            except (OSError, ssl.SSLError) as error:
                raise EtcdError(UNAUTHENTICATED, f"cannot use the certificates for etcd: {error}") from error
        return self._tls
