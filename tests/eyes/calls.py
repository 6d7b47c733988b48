"""Calls of a plugin and scrapes, without a process for each: thousands of them in a test."""

from __future__ import annotations

import json
import os
import re
from typing import Any

from cni import defaults, plugin_protocol
from cni.cli import metrics
from cni.plugin import client
from tests.kernel.toolnode import Node, Space


def call(node: Node, verb: str, name: str, space: Space | None, **more: str) -> tuple[int, dict[str, Any]]:
    """One call over the daemon's socket: exit code, and what the plugin would print. `more`: keys of the network
    list."""
    conf = {"cniVersion": "1.0.0", "name": "net", "type": "zlayer-cni", "service": "web", **more}
    container, _, interface = name.partition("/")
    variables = {
        b"CNI_COMMAND": verb.encode(),
        b"CNI_CONTAINERID": container.encode(),
        b"CNI_IFNAME": (interface or "eth0").encode(),
        b"CNI_PATH": b"/opt/cni/bin",
        b"CNI_NETNS": space.path.encode() if space is not None else b"",
    }
    keys = {} if space is None else {plugin_protocol.NETNS_FD: b"1"}
    waiter = client.Waiter(60)
    sock = client.connect(node.run_dir, waiter)
    fd = os.open(space.path, os.O_RDONLY) if space is not None else -1
    try:
        body = client.request(variables, keys, json.dumps(conf).encode())
        code, out, _ = client.ask(sock, body, () if fd < 0 else (fd,), waiter)
    finally:
        sock.close()
        if fd >= 0:
            os.close(fd)
    return code, json.loads(out) if out.strip() else {}


def scrape(node: Node) -> dict[str, float]:
    """Each series of a scrape, its labels sorted, with its value; checks that the text is as Prometheus reads it."""
    answer = metrics.scrape(f"{node.run_dir}/{defaults.METRICS_SOCKET}")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n"), answer[:500]
    return read(body.decode())


SERIES = re.compile(r'([a-z_]+)(?:\{((?:[a-z]+="(?:[^"\\\n]|\\.)*",?)*)\})? (\S+)')


def read(text: str) -> dict[str, float]:
    """The series of a scrape in the text format 0.0.4. Fails for a line that is none of it, for a series that stands
    there twice, and for one whose family has no type."""
    found: dict[str, float] = {}
    kinds: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in kinds, line
            kinds[name] = kind
        elif not line.startswith("# HELP "):
            match = SERIES.fullmatch(line)
            assert match is not None, line
            family = match[1]
            if family not in kinds:
                family = re.sub(r"_(bucket|sum|count)$", "", family)
            assert family in kinds, line
            labels = ",".join(sorted(re.findall(r'[a-z]+="(?:[^"\\]|\\.)*"', match[2] or "")))
            series = f"{match[1]}{{{labels}}}" if labels else match[1]
            assert series not in found, series
            found[series] = float(match[3])
    assert text.endswith("\n")
    return found
