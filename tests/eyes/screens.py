"""Makes docs/screens.md: every command of the tool, on two real nodes, on terminals of 80 and 200 columns.

scripts/screens
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import struct
import subprocess
import sys
import termios
from pathlib import Path

from cni.cli import completion
from cni.cli.parser import parser
from tests.mesh.fleet import ROOT, Node, fleet, link, wait_for

WIDTHS = (80, 200)
MOST = 36  # lines of one screen
PAGE = ROOT / "docs/screens.md"
SHOWN = {
    "status": ["status"],
    "attachments": ["attachments"],
    "networks": ["networks"],
    "why": ["why", "{red}", "{blue}", "80"],
    "drops": ["drops", "--seconds", "1"],
    "trace": ["trace", "{red}", "{blue}", "80/udp"],
    "connectivity": ["connectivity", "test", "--quiet", "--outside", "198.51.100.2"],
    "plan": ["plan", "{conf}"],
    "peers": ["peers"],
    "doctor": ["doctor"],
    "gc": ["gc", "--dry-run"],
    "graph": ["graph"],
    "version": ["version"],
    "explain": ["explain", "104"],
    "validate": ["validate", "{conf}"],
    "bundle": ["bundle", "--show"],
    "events": [],
    "metrics": [],
}
"""What is typed for a command; of others, and of those with nothing here, the help is shown."""
LIST = '{"cniVersion": "1.0.0", "name": "zlayer", "plugins": [{"type": "zlayer-cni", "service": "web"}]}'
_NO_RUN_DIR = ("validate", "completion", "man", "explain")


def screen(node: Node, words: list[str], columns: int) -> str:
    """What a terminal of that width shows."""
    primary, secondary = os.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    env = {**os.environ, "NO_COLOR": "1", "TERM": "xterm"}
    env.pop("COLUMNS", None)
    command = ["ip", "netns", "exec", node.name, *node.program, *words]
    with subprocess.Popen(command, cwd=ROOT, stdout=secondary, stderr=secondary, env=env) as process:
        os.close(secondary)
        shown = b""
        while True:
            try:
                part = os.read(primary, 1 << 16)
            except OSError:  # EIO: the program has ended
                break
            if not part:
                break
            shown += part
        process.wait(120)
    os.close(primary)
    return shown.decode().replace("\r\n", "\n")


def told(text: str, node: Node) -> str:
    """The text without what is this machine's, and not too long."""
    for found, shown in (
        (str(node.directory / "run"), "/run/zlayer-cni"),
        (str(node.directory / "data"), "/var/lib/zlayer-cni"),
        (str(node.directory), "/etc/zlayer-cni"),
        (str(ROOT), "/opt/zlayer-cni"),
        (socket.gethostname(), "node1"),
    ):
        text = text.replace(found, shown)
    text = re.sub(r"/tmp/[\w./-]+", "/run/zlayer-cni/agents.sock", text)
    lines = text.rstrip().split("\n")
    return "\n".join(lines if len(lines) <= MOST else [*lines[: MOST - 1], f"... ({len(lines) - MOST + 1} more lines)"])


def typed(word: str, names: dict[str, str]) -> list[str]:
    """The words of the command as a user types them."""
    return [each.format(**names) for each in SHOWN.get(word, [])] or [word, "--help"]


def page() -> str:
    """The whole page."""
    with fleet("v") as made:
        nodes = [made.node(number, start=False) for number in (1, 2)]
        link(*nodes)
        for node in nodes:
            node.start()
        one, two = nodes
        boxes = {"red": one.container("web", isolationNetwork="red"), "blue": one.container("db")}
        wait_for(lambda: boxes["blue"].pings(two.container("web").address), "the tunnel")
        conf = one.directory / "10-zlayer.conflist"
        conf.write_text(LIST)
        names = {"conf": str(conf), **{name: box.name for name, box in boxes.items()}}
        parts = [
            "# Screens\n\nEvery command on a node with two containers and one peer, at 80 and at 200 columns."
            " `scripts/screens` makes this page.\n"
        ]
        pinging = subprocess.Popen(  # so that there is something to see
            ["nsenter", "-t", str(boxes["red"].process.pid), "-n", "ping", "-q", "-i", "0.4", boxes["blue"].address],
            stdout=subprocess.DEVNULL,
        )
        for word in [each.name for each in completion.words(parser()) if each.name not in ("overlayd", "help")]:
            words = typed(word, names)
            place = [] if word in _NO_RUN_DIR or words[-1] == "--help" else ["--run-dir", str(one.directory / "run")]
            parts.append(f"## {word}\n")
            for columns in WIDTHS:
                shown = told(screen(one, words + place, columns), one)
                line = told(" ".join(words), one)
                parts.append(f"{columns} columns:\n\n```text\n$ zlayer-cni {line}\n{shown}\n```\n")
        pinging.kill()
        pinging.wait()
        return "\n".join(parts)


if __name__ == "__main__":
    Path(PAGE).write_text(page())
    sys.stdout.write(f"{PAGE.relative_to(ROOT)} is made\n")
