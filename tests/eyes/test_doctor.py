"""The doctor's second reader, beside a real daemon."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from pathlib import Path
from typing import Any

from tests.eyes.calls import call
from tests.kernel import toolnode
from tests.kernel.toolnode import Node, ip


def findings(node: Node) -> dict[str, list[dict[str, Any]]]:
    """What `doctor --json` finds, by check."""
    _, out = node.tool("doctor", "--json", "--data-dir", str(node.dir / "data"))
    found: dict[str, list[dict[str, Any]]] = {}
    for finding in json.loads(out)["findings"]:
        found.setdefault(finding["check"], []).append(finding)
    return found


def test_a_second_reader_of_the_kernel(tmp_path: Path) -> None:
    with toolnode.spaces() as make:
        node = Node(tmp_path, make(), make())
        try:
            toolnode.uplink(node.host, node.outside)
            node.start()
            for n in range(3):
                assert call(node, "ADD", f"c{n}", make())[0] == 0
            found = findings(node)
            assert [each["level"] for each in found["netlink"]] == ["ok"]
            assert [each["level"] for each in found["data path"]] == ["ok"]
            assert "3 attachments, 1 services" in found["data path"][0]["text"]

            port, ended = node.ask("attachments")[0]["host_interface"], threading.Event()

            def unplug() -> None:
                while not ended.wait(0.05):
                    with contextlib.suppress(Exception):
                        ip("-n", node.host.name, "link", "set", port, "nomaster")

            thread = threading.Thread(target=unplug)
            thread.start()
            try:
                found = findings(node)
            finally:
                ended.set()
                thread.join()
            assert found["data path"][0]["level"] == "fail"
            assert f"{port} is on no bridge" in found["data path"][0]["text"]

            assert node.process is not None
            pid = int((Path(node.run_dir) / "overlayd.pid").read_text())
            node.process.send_signal(signal.SIGSTOP)
            try:
                found = findings(node)
            finally:
                node.process.send_signal(signal.SIGCONT)
            (daemon,) = [each for each in found["daemon"] if f"process {pid}" in each["text"]]
            assert daemon["level"] == "fail"
            assert "a signal has stopped it" in daemon["text"]
            assert "netlink" in found, "the kernel is looked at all the same"
        finally:
            node.close()
