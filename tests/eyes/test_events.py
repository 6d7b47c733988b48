"""`events`, `--watch`, `status --wait` and `log-level` on a real daemon."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cni.cli import ask
from cni.daemon.api import event_stream
from tests.eyes.calls import call
from tests.kernel import toolnode
from tests.kernel.toolnode import Node, Space, until


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with toolnode.running(tmp_path_factory.mktemp("node"), {}) as made:
        yield made


@pytest.fixture
def make() -> Iterator[Callable[[], Space]]:
    with toolnode.spaces() as maker:
        yield maker


class Reader:
    """`zlayer-cni COMMAND` as a process, and what it has printed so far."""

    def __init__(self, node: Node, *words: str) -> None:
        self.process = node.program(*words, "--run-dir", node.run_dir, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.text = ""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.text += line.decode()

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]

    def named(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.events() if line["event"] == event]

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(20)
        self._thread.join(5)
        return code


def test_what_happens_is_told(node: Node, make: Callable[[], Space]) -> None:
    reader, space = Reader(node, "events"), make()
    assert until(lambda: bool(reader.named("begin")), 10)
    began = time.time()
    assert call(node, "ADD", "c1", space, isolationNetwork="red")[0] == 0
    assert call(node, "ADD", "c2", space, service="x" * 300)[0] == 1
    assert call(node, "DEL", "c1", space)[0] == 0
    node.host.nft("flush chain inet zlayer_cni forward")
    assert until(lambda: bool(reader.named("problem-began")), 15)
    assert reader.end() == 0
    (added,) = reader.named("attachment-added")
    assert (added["container_id"], added["interface"], added["service"]) == ("c1", "eth0", "web")
    assert (added["isolation_network"], added["network"], len(added["addresses"])) == ("red", "net", 2)
    assert began <= added["time"] <= time.time()
    (failed,) = reader.named("call-failed")
    assert (failed["verb"], failed["code"], failed["container_id"]) == ("ADD", "7", "c2")
    (removed,) = reader.named("attachment-removed")
    assert removed["addresses"] == added["addresses"]
    assert {line["code"] for line in reader.named("problem-began")} >= {"fence-repaired"}


def test_a_collected_attachment_is_told(node: Node, make: Callable[[], Space]) -> None:
    reader, space = Reader(node, "events"), make()
    assert until(lambda: bool(reader.named("begin")), 10)
    assert call(node, "ADD", "dead", space)[0] == 0
    space.ip("link del eth0")
    assert until(lambda: bool(reader.named("attachment-collected")), 40)
    assert reader.end() == 0
    assert "interface" in reader.named("attachment-collected")[0]["text"]


def test_a_slow_reader_is_told_and_cut_off(node: Node) -> None:
    """It reads nothing while more happens than its socket and its queue take."""
    with ask.stream(node.run_dir, "events") as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for n in range(6 * event_stream.MOST_WAITING):
            assert call(node, "ADD", f"s{n}", None, service="x" * 300)[0] != 0
        sock.settimeout(10)
        data = b""
        while chunk := sock.recv(1 << 16):
            data += chunk
    last = json.loads(data.splitlines()[-1])
    assert last["event"] == "end"
    assert "too slow" in last["text"]


def test_readers_are_bounded_and_leave_no_trace(node: Node) -> None:
    import contextlib

    with contextlib.ExitStack() as stack:
        for _ in range(event_stream.MOST_READERS):
            stack.enter_context(ask.stream(node.run_dir, "events"))
        with pytest.raises(ask.Refused, match="16 readers"), ask.stream(node.run_dir, "events"):
            pass
    assert until(lambda: _accepts(node), 10)


def _accepts(node: Node) -> bool:
    try:
        with ask.stream(node.run_dir, "events"):
            return True
    except ask.Refused:
        return False


def test_watch_prints_a_listing_again_when_it_changes(node: Node, make: Callable[[], Space]) -> None:
    reader, space = Reader(node, "attachments", "--watch"), make()
    assert until(lambda: "NETWORK" in reader.text, 10)
    began = time.monotonic()
    assert call(node, "ADD", "watched", space)[0] == 0
    assert until(lambda: "watched" in reader.text, 5)
    assert time.monotonic() - began < 5
    assert call(node, "DEL", "watched", space)[0] == 0
    assert until(lambda: reader.text.count("NETWORK") == 3, 5)
    assert reader.end() == 0


@pytest.mark.parametrize(
    ("words", "appears"),
    [
        (["status"], "seen-status"),
        (["networks"], "watched"),
        (["graph"], "seen-graph"),
        (["resolve", "seen-resolve"], "10.200."),
        (["why", "outside", "node"], ""),
        (["peers"], ""),
        (["peer", "gone"], None),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_every_listing_is_watched(node: Node, make: Callable[[], Space], words: list[str], appears: str | None) -> None:
    """What an ADD changes in it appears within seconds; a question that fails ends the watch."""
    reader, space = Reader(node, *words, "--watch"), make()
    if appears is None:
        assert reader.process.wait(10) == 1
        return
    assert until(lambda: bool(reader.text), 10)
    before = len(reader.text)
    service = f"seen-{words[0]}"
    assert call(node, "ADD", "watched", space, service=service)[0] == 0
    try:
        assert until(lambda: appears in reader.text[before if appears else 0 :], 5)
    finally:
        assert call(node, "DEL", "watched", space, service=service)[0] == 0
        assert reader.end() == 0


def test_a_collection_is_watched_before_it_is_made(node: Node, make: Callable[[], Space]) -> None:
    reader, space = Reader(node, "gc", "--dry-run", "--watch"), make()
    assert until(lambda: bool(reader.text), 10)
    assert call(node, "ADD", "lost", space)[0] == 0
    space.ip("link del eth0")
    assert call(node, "ADD", "other", make())[0] == 0  # an event
    assert until(lambda: "lost" in reader.text, 15)
    assert reader.end() == 0
    assert call(node, "DEL", "other", None)[0] == 0


@pytest.mark.parametrize("words", [["gc"], ["peer", "rotate"], ["peer", "forget", "x"]])
def test_what_changes_something_is_not_watched(node: Node, words: list[str]) -> None:
    assert node.tool(*words, "--watch")[0] == 2


def test_wait_waits_for_a_problem_to_end(tmp_path: Path) -> None:
    with toolnode.spaces() as maker:
        made = Node(tmp_path, maker(), maker())
        try:
            toolnode.uplink(made.host, made.outside)
            code, _ = made.tool("status", "--wait", "--timeout", "0.5")
            assert code == 3
            waiting = Reader(made, "status", "--wait", "--timeout", "50")
            made.start()
            assert waiting.process.wait(20) == 0
            settings = made.dir / "overlayd.yaml"
            before = settings.read_text()
            settings.write_text(before + "mtu: 1400\n")
            code, out = made.tool("status", "--wait", "--timeout", "1")
            assert (code, "settings-not-applied" in out) == (1, True)
            waiting = Reader(made, "status", "--wait", "--timeout", "50")
            time.sleep(1)
            assert waiting.process.poll() is None
            settings.write_text(before)
            assert waiting.process.wait(10) == 0
        finally:
            made.close()


def test_the_level_of_the_log_changes_while_the_daemon_runs(node: Node, make: Callable[[], Space]) -> None:
    log, space = node.dir / "log", make()
    assert node.tool("log-level") == (0, "info\n")
    assert node.tool("log-level", "error") == (0, "error; info again after the daemon's next start\n")
    size = log.stat().st_size
    assert call(node, "ADD", "quiet", space)[0] == 0
    assert log.read_bytes()[size:] == b""
    assert any("error" in note for note in node.ask("status")["notes"])
    assert node.tool("log-level", "info")[0] == 0
    assert call(node, "DEL", "quiet", space)[0] == 0
    assert "verb=DEL" in log.read_text()[size:]
    with pytest.raises(ask.Refused, match="no level"):
        ask.request(node.run_dir, "log-level", {"NEW_LOG_LEVEL": "loud"})


@pytest.mark.parametrize(("form", "begins"), [("json", '{"time": "'), ("logfmt", "time=")])
def test_the_formats_of_the_log(tmp_path: Path, form: str, begins: str) -> None:
    with toolnode.spaces() as maker:
        made = Node(tmp_path, maker(), maker())
        made.settings += f"log_format: {form}\n"
        try:
            toolnode.uplink(made.host, made.outside)
            made.start()
            assert call(made, "ADD", "c1", maker())[0] == 0
            (made.dir / "overlayd.yaml").write_text("mtu: 1400\n")
            made.ask("status")
        finally:
            made.close()
        lines = (made.dir / "log").read_text().splitlines()
        assert [line for line in lines if not line.startswith(begins)] == []
        if form == "json":
            found = [json.loads(line) for line in lines]
            (added,) = [line for line in found if line.get("verb") == "ADD"]
            assert (added["code"], added["attachment"], added["level"]) == ("0", "c1/eth0", "info")
            assert [line["problem"] for line in found if "problem" in line] == ["settings-not-applied"]
        else:
            assert any(" problem=settings-not-applied text=" in line for line in lines)
