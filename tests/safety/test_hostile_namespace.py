"""A container fills its own namespace: what the daemon reads there is bounded, and what a call costs with it."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mesh.fleet import SLOW, Container, Node

ROUTES = 100_000
AT_ONCE = 4
SECONDS = 4 * SLOW  # a call, four at once; it took 8 s and more when all was read
MEGABYTES = 40  # what the daemon may need for four at once; 200,000 routes took half a gigabyte


def routes(via: str) -> Iterator[str]:
    """Lines for `ip -batch`: so many routes."""
    for n in range(ROUTES):
        yield f"route add 10.{100 + (n >> 16)}.{n >> 8 & 255}.{n & 255}/32 {via}"


def addresses() -> Iterator[str]:
    for n in range(4_500):
        yield f"address add 172.16.{n >> 8}.{n & 255}/32 dev eth0"


def fill(container: Container, lines: Iterator[str]) -> None:
    batch = container.node.directory / "batch"
    batch.write_text("\n".join(lines) + "\n")
    container.run("ip", "-batch", str(batch))


def memory(node: Node) -> int:
    """The most the daemon ever had, in megabytes."""
    assert node.daemon is not None
    for pid in node.pids():
        status = Path(f"/proc/{pid}/status").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"overlayd" in command:
            found = re.search(r"VmHWM:\s+(\d+)", status)
            assert found
            return int(found[1]) >> 10
    raise AssertionError("no daemon")


def check(container: Container, result: dict[str, object]) -> str:
    """What CHECK says: "" or its error."""
    container.conf = {"prevResult": result}
    try:
        container.node.plugin("CHECK", container)
    except RuntimeError as error:
        text = str(error)
        said = json.JSONDecoder().raw_decode(text[text.index("{") :])[0]
        return f"{said['code']}: {said['msg']} {said.get('details', '')}"
    return ""


def attach(node: Node) -> tuple[Container, dict[str, object]]:
    """A container, and the result of its ADD."""
    container = node.container("web")
    node.plugin("DEL", container)
    return container, json.loads(node.plugin("ADD", container))


def measured(container: Container, result: dict[str, object]) -> list[str]:
    """Four CHECKs at once, in bounded time and memory; what they said."""
    node, said = container.node, []
    check(container, result)
    before = memory(node)
    took = []

    def one() -> None:
        began = time.monotonic()
        said.append(check(container, result))
        took.append(time.monotonic() - began)

    threads = [threading.Thread(target=one) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(took) < SECONDS
    assert memory(node) - before < MEGABYTES
    return said


@pytest.mark.parametrize("where", ["via", "dev lo"])
def test_a_hundred_thousand_routes_cost_a_call_little(frozen: Callable[..., Node], where: str) -> None:
    node = frozen(1)
    container, result = attach(node)
    gateway = json.loads(container.run("ip", "-j", "route", "show", "default"))[0]["gateway"]
    fill(container, routes(f"via {gateway}" if where == "via" else where))
    assert measured(container, result) == [""] * AT_ONCE
    container.run("ip", "route", "del", "default")
    said = check(container, result)
    assert said.startswith("102: ")
    assert ("more than" if where == "via" else "is missing") in said
    node.plugin("DEL", container)
    container.conf = {}
    began = time.monotonic()
    again = json.loads(node.plugin("ADD", container))
    assert time.monotonic() - began < SECONDS
    assert check(container, again) == ""


def test_so_many_addresses_that_a_check_does_not_read_them_all(frozen: Callable[..., Node]) -> None:
    node = frozen(1)
    container, result = attach(node)
    address = container.run("ip", "-j", "address", "show", "dev", "eth0")
    own = next(a for a in json.loads(address)[0]["addr_info"] if a["family"] == "inet")
    fill(container, addresses())
    assert measured(container, result) == [""] * AT_ONCE
    container.run("ip", "address", "del", f"{own['local']}/{own['prefixlen']}", "dev", "eth0")
    for said in measured(container, result):
        assert said.startswith("102: ") and "more than 4096 addresses" in said


def test_an_agents_attach_of_a_crowded_namespace_is_answered(frozen: Callable[..., Node]) -> None:
    """Such an attach looks for a default route first: in so many routes it does not go on looking."""
    from cni.overlay import wire
    from tests.safety.test_owners import unattached

    node = frozen(1)
    container = unattached(node, "agents")
    container.run("ip", "link", "set", "lo", "up")
    fill(container, itertools.islice(routes("dev lo"), 30_000))
    node.ask(wire.SetupServiceOverlay("web", "auto"))
    began = time.monotonic()
    said = node.ask(wire.AttachContainer(handle=wire.LinuxPid(container.process.pid), service="web", join_global=False))
    assert time.monotonic() - began < SECONDS
    assert isinstance(said, wire.Err) and "more than 16384 routes" in said.message, said
