"""Requests to Kubernetes' API server: one request and its answer, or a stream of lines.

By http.client, because a call of the API needs no more: importing it takes 30 ms and the process has 16 MB then; httpx
takes 61 ms and 22 MB, the package kubernetes 186 ms and 43 MB. Each thread has its own connection. The token is read
again every minute and after an answer 401, as its file is replaced while it is valid.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cni.daemon import settings as settings_module
from cni.daemon.cluster.certificates import Certificates
from cni.daemon.cluster.connection import connected, end_stream, is_usable, unreachable
from cni.daemon.cluster.store import PATIENCE, UNAUTHENTICATED, StoreError, Unreachable, WrongServer
from cni.host.worker import beat

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # where a pod has its token, its CA and its namespace
NAMESPACE = "zlayer-cni"  # of the Leases, outside of a pod
TOKEN_AGE = 60.0  # seconds after which the token is read again
LONGEST = 16 << 20  # bytes of one answer, or of one line of a stream
SILENCE = 90.0  # seconds after which a stream is ended: the API server sends a bookmark every minute
TRIES = 3  # of a request to an API server that has too much to do
LONGEST_PAUSE = 5.0  # seconds: the longest `Retry-After` that is waited for


class Refused(StoreError):
    """The API server answers with an error; `code` is the HTTP status."""


class ApiServer:
    """The connections to one API server. Any thread may use it."""

    def __init__(self, where: settings_module.Kubernetes, note: Callable[[str, str], None]) -> None:
        """`note`: sets the problem of a code to a text, or clears it with an empty text."""
        self._where = where
        self.url = urlsplit(where.server or _server_of_pod())
        ca = where.ca_file or (str(ACCOUNT / "ca.crt") if (ACCOUNT / "ca.crt").exists() else "")
        files = {"ca_file": ca, "cert_file": where.cert_file, "key_file": where.key_file}
        self.certificates = Certificates(files, "the API server", note)
        in_pod = not where.token_file and not where.cert_file and (ACCOUNT / "token").exists()
        self._token_file = str(ACCOUNT / "token") if in_pod else where.token_file
        self._token, self._token_read = "", -TOKEN_AGE
        self._local = threading.local()
        self._streams: set[socket.socket] = set()
        self._lock = threading.Lock()  # guards `_streams` and the token
        self.local_address = ""

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One exchange; the answer as a JSON object. Raises Refused, Unreachable."""
        return _json_object(self._patient(method, path, body))

    def fetch(self, path: str) -> bytes:
        """The answer to a GET, as JSON that is not decoded. Raises Refused, Unreachable."""
        return self._patient("GET", path, None)

    def _patient(self, method: str, path: str, body: dict[str, Any] | None) -> bytes:
        for attempt in range(TRIES):
            beat(4 * PATIENCE)
            try:
                return self._authenticated(method, path, body)
            except _Busy as error:
                if attempt == TRIES - 1:
                    raise Unreachable(f"it has too much to do: {error}") from error
                time.sleep(min(error.pause, LONGEST_PAUSE))
        raise AssertionError("unreachable")

    def _authenticated(self, method: str, path: str, body: dict[str, Any] | None) -> bytes:
        try:
            return self._exchange(method, path, body)
        except Refused as error:
            if error.code != http.HTTPStatus.UNAUTHORIZED or not self._read_token(at_once=True):
                raise
        return self._exchange(method, path, body)

    def lines(self, path: str) -> Iterator[bytes]:
        """The lines of a streaming answer. Ends after `SILENCE` seconds without a line, and when the server ends the
        stream. Raises Refused, Unreachable."""
        try:
            with contextlib.closing(self._connect()) as connection:
                yield from self._lines_on(connection, path)
        except Unreachable:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise unreachable(error) from error

    def _lines_on(self, connection: http.client.HTTPConnection, path: str) -> Iterator[bytes]:
        stream = connection.sock
        connection.request("GET", path, headers=self._headers("GET"))
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            _read(response)
        stream.settimeout(SILENCE)
        with self._lock:
            self._streams.add(stream)
        try:
            while True:
                try:
                    line = response.readline(LONGEST)
                except TimeoutError:
                    return
                if not line.endswith(b"\n"):
                    return  # the server ends a stream at its time
                yield line
        finally:
            with self._lock:
                self._streams.discard(stream)

    def end_streams(self) -> None:
        """End every stream, which raises Unreachable or ends the iteration in the thread that reads it."""
        with self._lock:
            for stream in self._streams:
                end_stream(stream)

    # --- the wire ----------------------------------------------------------------------------------------------------

    def _exchange(self, method: str, path: str, body: dict[str, Any] | None) -> bytes:
        """One request and its answer on this thread's connection. A connection that was used before and is stale is
        replaced once."""
        data = None if body is None else json.dumps(body)
        while True:
            kept: dict[str, http.client.HTTPConnection] = self._local.__dict__.setdefault("connections", {})
            connection = kept.pop("kept", None)
            if connection is not None and not is_usable(connection):
                connection.close()
                connection = None
            fresh = connection is None
            if connection is None:
                connection = self._connect()
            try:
                connection.request(method, path, data, self._headers(method))
                response = connection.getresponse()
                answer = _read(response)
            except Refused:
                self._keep(connection)
                raise
            except StoreError:
                connection.close()
                raise
            except (OSError, http.client.HTTPException, ValueError) as error:
                connection.close()
                if fresh or not isinstance(error, ConnectionError | http.client.HTTPException):
                    raise unreachable(error) from error
                continue
            self._keep(connection)
            return answer

    def _keep(self, connection: http.client.HTTPConnection) -> None:
        if connection.sock is not None:
            self._local.__dict__["connections"]["kept"] = connection

    def _headers(self, method: str) -> dict[str, str]:
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        self._read_token(at_once=False)
        token = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        return {"Content-Type": kind, "Accept": "application/json", "User-Agent": "zlayer-cni", **token}

    def _read_token(self, at_once: bool) -> bool:
        """Read the token again if it is due. Returns whether it is another one. Raises StoreError."""
        if not self._token_file:
            return False
        with self._lock:
            if not at_once and time.monotonic() - self._token_read < TOKEN_AGE:
                return False
            before = self._token
            try:
                self._token = Path(self._token_file).read_text("ascii").strip()
            except (OSError, ValueError) as error:
                if not before:
                    text = f"cannot read the token of the API server in token_file: {type(error).__name__}"
                    raise StoreError(UNAUTHENTICATED, text) from error
            self._token_read = time.monotonic()
            return self._token != before

    def _connect(self) -> http.client.HTTPConnection:
        """A connection to the first address of the server's host that accepts one. Raises Unreachable."""
        host = self.url.hostname or ""
        if not host:
            raise Unreachable("neither cluster.kubernetes.server nor KUBERNETES_SERVICE_HOST names one")
        port = self.url.port or (443 if self.url.scheme == "https" else 80)
        try:
            connection, self.local_address = connected(self.url, host, port, PATIENCE, self.certificates)
        except OSError as error:
            raise unreachable(error) from error
        return connection


class _Busy(StoreError):
    """The API server asks to come back after `pause` seconds."""

    def __init__(self, text: str, pause: float) -> None:
        super().__init__(http.HTTPStatus.TOO_MANY_REQUESTS, text)
        self.pause = pause


def _server_of_pod() -> str:
    """The API server's URL from the environment of a pod; a URL that leads nowhere without one."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def namespace_of_pod() -> str:
    """The namespace of the pod in which this process runs; `NAMESPACE` outside of a pod."""
    try:
        return (ACCOUNT / "namespace").read_text("ascii").strip() or NAMESPACE
    except (OSError, ValueError):
        return NAMESPACE


def _read(response: http.client.HTTPResponse) -> bytes:
    """The body of an answer that is no error. Raises Refused, _Busy, Unreachable."""
    data = response.read(LONGEST)
    if response.status < 300:
        return data
    try:
        answer = _json_object(data)
    except WrongServer as error:
        text = f"HTTP {response.status}: {_beginning(data)}"
        raise (Unreachable(text) if response.status >= 500 else Refused(response.status, text)) from error
    text = f"HTTP {response.status}: {answer.get('message') or answer.get('reason') or 'no reason given'}"[:500]
    if response.status == http.HTTPStatus.TOO_MANY_REQUESTS:
        pause = response.headers.get("retry-after", "1")
        raise _Busy(text, float(pause) if pause.isdigit() else 1.0)
    if response.status >= 500:
        raise Unreachable(text)
    raise Refused(response.status, text)


def _json_object(data: bytes) -> dict[str, Any]:
    """The JSON object of an answer. Raises WrongServer."""
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise WrongServer(f"it does not answer with the JSON of Kubernetes' API: {_beginning(data)!a}")
    return answer


def _beginning(data: bytes) -> str:
    return " ".join(data[:100].decode("ascii", "replace").split())
