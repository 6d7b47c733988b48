"""As much of Kubernetes' API server as kube-proxy asks of one: lists and watches of four kinds, in JSON."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.mesh.fleet import inside

KINDS = {
    "/api/v1/services": ("v1", "Service"),
    "/api/v1/nodes": ("v1", "Node"),
    "/apis/discovery.k8s.io/v1/endpointslices": ("discovery.k8s.io/v1", "EndpointSlice"),
    "/apis/networking.k8s.io/v1/servicecidrs": ("networking.k8s.io/v1", "ServiceCIDR"),
}
INITIAL_END = {"k8s.io/initial-events-end": "true"}


class FakeApi:
    """The server, in the network namespace at a path; `put` and `delete` change what it has."""

    def __init__(self, netns: str, address: str) -> None:
        self._changed = threading.Condition()
        self._objects: dict[str, dict[str, dict[str, Any]]] = {path: {} for path in KINDS}
        self._history: list[tuple[str, str, dict[str, Any]]] = []
        self._closed = False
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                api.answer(self)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                send(self, 201, body)  # events

            do_PATCH = do_PUT = do_POST

            def log_message(self, *_: object) -> None:
                pass

        self._server = inside(netns, lambda: ThreadingHTTPServer((address, 0), Handler))
        self._server.daemon_threads = True
        self.url = f"http://{address}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def put(self, path: str, item: dict[str, Any]) -> None:
        """Add or replace an object of the kind at `path`."""
        version, kind = KINDS[path]
        name = item["metadata"]["name"]
        with self._changed:
            known = name in self._objects[path]
            number = str(len(self._history) + 2)
            meta = {"uid": f"{kind}-{name}", "namespace": "default", **item["metadata"], "resourceVersion": number}
            if kind in ("Node", "ServiceCIDR"):
                meta.pop("namespace")
            made = {"apiVersion": version, "kind": kind, **item, "metadata": meta}
            self._objects[path][name] = made
            self._history.append((path, "MODIFIED" if known else "ADDED", made))
            self._changed.notify_all()

    def delete(self, path: str, name: str) -> None:
        """Remove an object."""
        with self._changed:
            self._history.append((path, "DELETED", self._objects[path].pop(name)))
            self._changed.notify_all()

    def close(self) -> None:
        """Ends the watches and the server."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer a GET: a list, or a watch."""
        url = urlsplit(handler.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        path, _, name = (url.path, "", "") if url.path in KINDS else url.path.rpartition("/")
        if path not in KINDS:
            send(handler, 404, json.dumps({"kind": "Status", "status": "Failure", "code": 404}).encode())
        elif name:
            found = self._objects[path].get(name)
            send(handler, 200 if found else 404, json.dumps(found or {"kind": "Status", "code": 404}).encode())
        elif query.get("watch") in ("true", "1"):
            self._watch(handler, path, query)
        else:
            with self._changed:
                version, kind = KINDS[path]
                meta = {"resourceVersion": str(len(self._history) + 1)}
                items = [item for item in self._objects[path].values() if _selected(item, query)]
            listed = {"kind": f"{kind}List", "apiVersion": version, "metadata": meta, "items": items}
            send(handler, 200, json.dumps(listed).encode())

    def _watch(self, handler: BaseHTTPRequestHandler, path: str, query: dict[str, str]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        try:
            for event in self._events(path, query):
                line = json.dumps(event).encode() + b"\n"
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                handler.wfile.flush()
            handler.wfile.write(b"0\r\n\r\n")
        except OSError:
            handler.close_connection = True

    def _events(self, path: str, query: dict[str, str]) -> Iterator[dict[str, Any]]:
        at = max(0, int(query.get("resourceVersion") or 1) - 1)
        if query.get("sendInitialEvents") == "true":
            with self._changed:
                at, first = len(self._history), list(self._objects[path].values())
            yield from ({"type": "ADDED", "object": item} for item in first if _selected(item, query))
            version, kind = KINDS[path]
            meta = {"resourceVersion": str(at + 1), "annotations": INITIAL_END}
            yield {"type": "BOOKMARK", "object": {"kind": kind, "apiVersion": version, "metadata": meta}}
        while True:
            with self._changed:
                while not self._closed and len(self._history) == at:
                    self._changed.wait(60)
                if self._closed:
                    return
                fresh, at = self._history[at:], len(self._history)
            yield from (
                {"type": verb, "object": item} for of, verb, item in fresh if of == path and _selected(item, query)
            )


def _selected(item: dict[str, Any], query: dict[str, str]) -> bool:
    """Whether a field selector by name, if there is one, selects the object."""
    key, _, name = query.get("fieldSelector", "").partition("=")
    return key != "metadata.name" or item["metadata"]["name"] == name


def send(handler: BaseHTTPRequestHandler, code: int, body: bytes) -> None:
    """Answer with a whole body."""
    handler.send_response(code)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
