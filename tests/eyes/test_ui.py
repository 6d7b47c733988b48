"""The page of `zlayer-cni ui`: in a real browser, live, and closed to everything that is not this machine's reader."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cni.cli.ui.document import read
from tests.eyes.test_bundle import keys_of
from tests.kernel import toolnode
from tests.kernel.toolnode import Node, knock, until
from tests.mesh.fleet import fleet, link, wait_for

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MEMBERS: dict[str, tuple[str, str | None]] = {"red1": ("web", "red"), "red2": ("db", "red"), "b1": ("db", "blue")}
EVIL = '<img src=x onerror="document.title=1">'


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with toolnode.running(tmp_path_factory.mktemp("node"), MEMBERS) as made:
        yield made


@contextlib.contextmanager
def serving(node: Node, *words: str) -> Iterator[str]:
    """The page, and the line that the command prints about where it is."""
    process = node.program("ui", *words, "--run-dir", node.run_dir, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    try:
        line = process.stdout.readline().decode().strip()
        assert line, process.stderr.read().decode()
        yield line
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert process.returncode == 0


def ask(node: Node, port: int, raw: bytes) -> bytes:
    """The answer to the bytes of a request; of a stream the first 64 KiB."""
    with node.host.inside(lambda: socket.create_connection(("127.0.0.1", port), 10)) as sock:
        sock.sendall(raw)
        data = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError):  # one too many is reset
            while len(data) < 1 << 16 and (part := sock.recv(1 << 16)):
                data += part
        return data


def get(path: str, host: str, *more: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {host}", *more, "", ""]).encode()


# --- a browser -------------------------------------------------------------------------------------------------------


class Browser:
    """Chromium in the node's namespace, driven by DevTools' protocol over a pipe."""

    def __init__(self, node: Node, directory: Path) -> None:
        assert BROWSER is not None
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--disable-background-networking", f"--user-data-dir={directory}", "--remote-debugging-pipe"]
        # The browser reads at descriptor 3 and writes at 4.
        script = f'exec 3<&{to_read} 4>&{to_write}; exec "$0" "$@"'
        command = ["nsenter", f"--net={node.host.path}", "bash", "-c", script, BROWSER, *flags, "about:blank"]
        self._process = subprocess.Popen(
            command, pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_read)
        os.close(to_write)
        self._number, self._rest, self._session = 0, b"", ""
        self.events: list[dict[str, Any]] = []
        target = next(each for each in self.call("Target.getTargets")["targetInfos"] if each["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """The result of a command."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            heard = self._hear()
            if heard.get("id") == self._number:
                assert "error" not in heard, heard
                return heard["result"]
            self.events.append(heard)

    def _hear(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._read, 1 << 16)
            assert part, "the browser has ended"
            self._rest += part
        text, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(text))

    def value(self, expression: str) -> Any:
        """The value of a script's expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def text(self, place: str) -> str:
        return str(self.value(f"document.getElementById({place!r}).innerText"))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._write, b'{"id": 0, "method": "Browser.close"}\0')
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._write)
        os.close(self._read)


@pytest.fixture
def browser(node: Node, tmp_path: Path) -> Iterator[Browser]:
    if BROWSER is None:
        pytest.skip("no browser here (apt-get install chromium)")
    made = Browser(node, tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_a_browser_shows_the_node_and_what_happens(node: Node, browser: Browser) -> None:
    with serving(node, "--listen", "127.0.0.1:0") as url:
        browser.call("Page.navigate", url=url)
        assert until(lambda: "zlayer/0" in browser.text("name"), 20)
        assert "in force" in browser.text("fence")
        networks, members = browser.text("networks"), browser.text("members")
        assert all(word in networks for word in ("flat mesh", "red", "blue"))
        for name in MEMBERS:
            assert name in members and node.address(name) in members
        assert browser.value("document.querySelectorAll('#picture svg rect').length") == 1

        # A drop and an attachment appear without a reload.
        browser.value("window.marked = 1")
        with knock(node.boxes["red1"], node.address("b1"), 80, socket.SOCK_DGRAM, None):
            assert until(lambda: "between networks" in browser.text("drops"), 20)
        with toolnode.spaces() as make:
            node.add("fresh", make(), "web", EVIL)
            assert until(lambda: "fresh" in browser.text("members"), 20)
        assert EVIL in browser.text("networks")
        assert browser.value("document.querySelectorAll('img').length") == 0
        assert "zlayer/0" in browser.value("document.title")
        assert browser.value("window.marked") == 1
        # The policy lets nothing else be loaded, and the page has asked for nothing else.
        faults = [e for e in browser.events if e["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]
        assert faults == []
        asked = {e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"}
        assert {each for each in asked if not each.startswith("data:")} == {url, f"{url}live"}
    assert until(lambda: "not connected" in browser.text("live"), 20)


def test_another_page_may_not_read_it(node: Node, browser: Browser) -> None:
    """By its number from another origin, and by a name that is made to point to it."""
    with serving(node, "--listen", "127.0.0.1:0") as url:
        browser.call("Page.navigate", url="data:text/html,other")
        fetched = f"fetch({url!r}).then(r => r.text(), e => 'failed')"
        said = browser.call("Runtime.evaluate", expression=fetched, awaitPromise=True, returnByValue=True)
        assert said["result"]["value"] == "failed"
        port = int(url.split(":")[2].split("/")[0])
        rebound = ask(node, port, get(url.partition(str(port))[2], f"evil.example:{port}"))
        assert rebound.startswith(b"HTTP/1.1 421 ")


def test_only_a_reader_of_this_machine_is_answered(node: Node) -> None:
    with serving(node, "--listen", "127.0.0.1:0") as url:
        port, path = int(url.split(":")[2].split("/")[0]), "/" + url.split("/", 3)[3]
        own = f"127.0.0.1:{port}"
        cases = {
            get(path, own): b"200",
            get(path, f"localhost:{port}"): b"200",
            get(path, own, "Sec-Fetch-Site: same-origin"): b"200",
            get(path, own, method="HEAD"): b"200",
            get(path, f"attacker.example:{port}"): b"421",
            get(path, "127.0.0.1:1"): b"421",
            get(path, f"127.0.0.1.nip.io:{port}"): b"421",
            get(path, f"192.0.2.1:{port}"): b"421",
            f"GET {path} HTTP/1.0\r\n\r\n".encode(): b"421",
            get(path, own, f"Host: {own}"): b"400",
            get(path, own, "Sec-Fetch-Site: cross-site"): b"403",
            get("/", own): b"404",
            get("/live", own): b"404",
            get(f"{path}status", own): b"404",
            get(f"{path}../", own): b"404",
            **{get(path, own, method=verb): b"405" for verb in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE")},
            b"\x16\x03\x01\r\n\r\n": b"400",
        }
        for request, status in cases.items():
            answer = ask(node, port, request)
            assert answer.split(b" ", 2)[1] == status, (request, answer[:200])
            head = answer.partition(b"\r\n\r\n")[0].decode()
            assert "Content-Security-Policy: default-src 'none'; " in head
            assert "Access-Control" not in head
        assert ask(node, port, get(path, own, method="HEAD")).endswith(b"\r\n\r\n")
        assert ask(node, port, b"GET / HTTP/1.1\r\n" + b"x" * 9000 + b"\r\n\r\n") == b""
        # The port answers at no other address of the host.
        for address in (toolnode.LAN4, node.gateway("b1")):
            with knock(node.boxes["b1"], address, port, socket.SOCK_STREAM, None) as sock:
                time.sleep(0.3)
                with pytest.raises(OSError):
                    sock.getpeername()


def document(node: Node, port: int, path: str) -> str:
    """The first document of the stream."""
    with node.host.inside(lambda: socket.create_connection(("127.0.0.1", port), 10)) as sock:
        sock.sendall(get(f"{path}live", f"127.0.0.1:{port}"))
        data = b""
        while b"\n\ndata" not in data and not (b"data: " in data and data.endswith(b"\n\n")):
            part = sock.recv(1 << 16)
            assert part
            data += part
        return data.partition(b"data: ")[2].decode()


def test_no_secret_is_in_it() -> None:
    """On a node whose peer it shows; the daemon's directories have its keys."""
    with fleet("u") as made:
        nodes = [made.node(number, start=False) for number in (1, 2)]
        link(*nodes)
        for each in nodes:
            each.start()
        one, two = nodes
        box = one.container("web", isolationNetwork="red")
        wait_for(lambda: one.tool("peers"), "the peer")
        found = msgspec.json.encode(read(str(one.directory / "run"))).decode()
        assert str(two.number) in found and "red" in found and box.address in found
        secrets = keys_of(one)
        assert secrets
        assert [secret for secret in secrets if secret in found] == []


def test_nothing_is_asked_while_no_page_is_open(node: Node) -> None:
    def processor_time() -> float:
        assert node.process is not None
        ticks = Path(f"/proc/{node.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    with serving(node, "--listen", "127.0.0.1:0") as url:
        port, path = int(url.split(":")[2].split("/")[0]), "/" + url.split("/", 3)[3]
        document(node, port, path)
        time.sleep(4)
        before = processor_time()
        time.sleep(4)
        assert processor_time() - before < 0.3


def test_a_unix_socket_is_this_users_alone(node: Node, tmp_path: Path) -> None:
    path = tmp_path / "ui.sock"
    with serving(node, "--socket", str(path)) as line:
        assert str(path) in line
        assert path.stat().st_mode & 0o777 == 0o600

        class Connection(http.client.HTTPConnection):
            def connect(self) -> None:
                self.sock = socket.socket(socket.AF_UNIX)
                self.sock.connect(str(path))

        for host, status in (("localhost", 200), ("127.0.0.1:1234", 200), ("evil.example", 421)):
            connection = Connection("localhost")
            connection.request("GET", "/", headers={"Host": host})
            answer = connection.getresponse()
            assert answer.status == status
            assert (b"<title>zlayer-cni" in answer.read()) == (status == 200)
    assert not path.exists()


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:9475", "192.0.2.1:9475", "[::]:9475", "localhost:9475", "9475", "127.0.0.1:x"]
)
def test_it_listens_at_loopback_alone(node: Node, listen: str) -> None:
    assert node.tool("ui", "--listen", listen)[0] == 2


def test_without_a_daemon_there_is_no_page(node: Node, tmp_path: Path) -> None:
    process = node.program("ui", "--listen", "127.0.0.1:0", "--run-dir", str(tmp_path), stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 3
    assert b"no overlay daemon answers" in said


def test_many_connections_are_bounded(node: Node) -> None:
    from cni.cli.ui.server import MOST

    with serving(node, "--listen", "127.0.0.1:0") as url, contextlib.ExitStack() as held:
        port, path = int(url.split(":")[2].split("/")[0]), "/" + url.split("/", 3)[3]
        for _ in range(MOST):
            held.enter_context(node.host.inside(lambda: socket.create_connection(("127.0.0.1", port), 10)))
        time.sleep(0.3)
        assert ask(node, port, get(path, f"127.0.0.1:{port}")) == b""
        held.close()
        assert until(lambda: b" 200 " in ask(node, port, get(path, f"127.0.0.1:{port}"))[:20], 15)
