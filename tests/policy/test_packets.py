"""Random policies, pods and packets: a small model of the API's text, `why`, and real packets agree."""

from __future__ import annotations

import functools
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kernel.toolnode import CLUSTER4, CLUSTER6, Node, Space, knock, reached, running, spaces, until
from tests.policy import generate, small_model

pytestmark = [pytest.mark.root, pytest.mark.long]
NAMESPACES = {name: {"kubernetes.io/metadata.name": name} for name in generate.NAMESPACES}
KINDS = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM}
PODS = 9
ROUNDS = 8
FLOWS = 70  # of each round
ANSWER = 0.7  # seconds in which an answer comes, on a machine with other work


@pytest.fixture(scope="module", params=["bridge-0", "bridge-1", "routed"])
def scene(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Node, dict[str, small_model.PodFacts]]]:
    """A node with pods of random labels in three services and three namespaces, and their facts by name."""
    directory = tmp_path_factory.mktemp("packets")
    (directory / "policies").mkdir()
    kind, _, bridged = request.param.partition("-")
    rnd = random.Random(request.param)
    settings = f"policies: {directory}/policies\nattach: {kind}\n"
    with running(directory, {}, settings=settings) as node, spaces() as make:
        pods = {}
        for number in range(PODS):
            name, facts = f"pod{number}", generate.pod(rnd, (), names=False)
            node.add(name, make(), f"svc{number % 3}", None, facts["namespace"], facts["labels"])
            facts["addresses"] = (node.address(name, 4), node.address(name, 6))
            pods[name] = facts
        for space in (node.host, *node.boxes.values()):
            _answer_always(space)
        for tool in ("iptables", "ip6tables"):
            setting = Path(f"/proc/sys/net/bridge/bridge-nf-call-{tool}")
            node.host.inside(functools.partial(setting.write_text, bridged or "0"))
        yield node, pods


def _answer_always(space: Space) -> None:
    for name in ("ipv4/icmp_ratelimit", "ipv6/icmp/ratelimit"):
        space.inside(functools.partial(Path("/proc/sys/net", name).write_text, "0"))
    for name in ("icmp_msgs_per_sec", "icmp_msgs_burst"):
        space.inside(functools.partial(_if_there, Path("/proc/sys/net/ipv4", name)))


def _if_there(path: Path) -> None:
    if path.exists():
        path.write_text("100000")


def put_in_force(node: Node, documents: list[dict[str, Any]]) -> None:
    """The policies as one file; returns when the daemon has put them in force."""
    before = (node.dir / "log").read_text().count("are put in force")
    partial = node.dir / "policies" / ".all"
    partial.write_text(yaml.safe_dump_all(documents))
    partial.rename(node.dir / "policies" / "all.yaml")
    assert until(lambda: (node.dir / "log").read_text().count("are put in force") > before, 5)
    time.sleep(0.1)


def blocks(pods: dict[str, small_model.PodFacts], family: int) -> list[str]:
    """A network with every pod, and some with one."""
    addresses = [address for pod in pods.values() for address in pod["addresses"] if (":" in address) == (family == 6)]
    whole, length = (CLUSTER4, 32) if family == 4 else (CLUSTER6, 128)
    return [whole, *(f"{address}/{length}" for address in addresses)]


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_packets_why_and_the_model_agree(scene: tuple[Node, dict[str, small_model.PodFacts]], seed: int) -> None:
    node, pods = scene
    rnd, family = random.Random(seed), 4 if seed % 2 else 6
    inside = blocks(pods, family)
    documents = [generate.policy(rnd, number, inside) for number in range(rnd.randint(1, 5))]
    put_in_force(node, documents)
    flows = []
    for _ in range(FLOWS):
        client, server = rnd.sample(sorted(pods), 2)
        flows.append((client, server, rnd.choice(["TCP", "UDP"]), rnd.choice(generate.PORTS)))
    flows = list(dict.fromkeys(flows))
    expected = {}
    for client, server, protocol, port in flows:
        ends = [(pods[name]["addresses"][family == 6], pods[name]) for name in (client, server)]
        expected[client, server, protocol, port] = small_model.allowed(
            documents, NAMESPACES, ends[0], ends[1], protocol, port
        )
    told = {flow: _why(node, family, *flow) for flow in flows}
    assert told == expected, documents
    assert send(node, family, flows) == expected, documents


def _why(node: Node, family: int, client: str, server: str, protocol: str, port: int) -> bool:
    answer = node.why(node.address(client, family), node.address(server, family), f"{port}/{protocol.lower()}")
    (path,) = answer["paths"]
    return bool(path["allowed"])


def send(node: Node, family: int, flows: list[tuple[str, str, str, int]]) -> dict[tuple[str, str, str, int], bool]:
    """Which flows are answered; all are begun at once."""
    knocks = {
        flow: knock(node.space_of(flow[0]), node.address(flow[1], family), flow[3], KINDS[flow[2]], None)
        for flow in flows
    }
    seen: dict[tuple[str, str, str, int], bool] = dict.fromkeys(flows, False)

    def all_answered() -> bool:
        for flow, sock in knocks.items():
            seen[flow] = seen[flow] or reached(sock)
        return all(seen.values())

    until(all_answered, ANSWER)
    for sock in knocks.values():
        sock.close()
    return seen
