"""Network policies from files, by a real daemon and real packets: who reaches whom, and what changes and faults do."""

from __future__ import annotations

import functools
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.toolnode import Node, knock, reached, running, until

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
HEAD = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %s, namespace: net}\nspec: "
WEB = HEAD % "web" + (
    "{podSelector: {matchLabels: {zlayer.io/service: web}}, ingress: ["
    "{from: [{podSelector: {matchLabels: {zlayer.io/name: db}}}], ports: [{port: 80}, {port: 90, endPort: 92}]},"
    "{ports: [{protocol: UDP, port: 53}]}]}"
)
DENY = HEAD % "deny" + "{podSelector: {matchLabels: {zlayer.io/name: db}}, policyTypes: [Egress]}"
CONTAINERS: dict[str, tuple[str, str | None]] = {
    "web": ("web", None),
    "web2": ("web", None),
    "db": ("db", None),
    "other": ("db", None),
}

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    directory = tmp_path_factory.mktemp("policy")
    with running(directory, CONTAINERS, settings=f"policies: {directory}/policies\n") as made:
        (directory / "policies").mkdir()
        yield made


def policies(node: Node, **files: str) -> None:
    """The files of the directory, in force."""
    place = node.dir / "policies"
    for path in place.iterdir():
        if path.stem not in files:
            path.unlink()
    for name, text in files.items():
        partial = place / f".{name}"
        partial.write_text(text)
        partial.rename(place / f"{name}.yaml")


def passes(
    node: Node, client: str, server: str, port: int, kind: int = TCP, family: int = 4, wait: float = 0.3
) -> bool:
    """Whether the first packet of a flow is answered."""
    with knock(node.space_of(client), node.address(server, family), port, kind, None) as sock:
        return until(lambda: reached(sock), wait)


def becomes(node: Node, client: str, server: str, port: int, wanted: bool) -> bool:
    """Whether that flow is answered, or not, within a second or two."""
    return until(lambda: passes(node, client, server, port) == wanted, 3)


def problems(node: Node) -> list[str]:
    """The codes of the problems that exist now."""
    return [problem["code"] for problem in node.ask("status")["problem_details"]]


@pytest.mark.parametrize(("bridged", "family"), [("0", 6), ("1", 4)])  # tests/policy has the other two, and routed
def test_flows_pass_as_the_policies_say(node: Node, bridged: str, family: int) -> None:
    for tool in ("iptables", "ip6tables"):
        setting = Path(f"/proc/sys/net/bridge/bridge-nf-call-{tool}")
        node.host.inside(functools.partial(setting.write_text, bridged))
    policies(node, web=WEB)
    assert becomes(node, "other", "web", 80, False)
    expected = {
        ("db", "web", 80, TCP): True,
        ("db", "web", 91, TCP): True,
        ("db", "web", 81, TCP): False,
        ("db", "web", 80, UDP): False,
        ("other", "web", 80, TCP): False,
        ("other", "web", 53, UDP): True,
        ("web2", "web", 80, TCP): False,  # on one bridge
        ("web2", "web", 53, UDP): True,  # on one bridge
        ("web", "db", 80, TCP): True,
        ("other", "db", 80, TCP): True,
        ("node", "web", 80, TCP): True,
    }
    seen = {cell: passes(node, cell[0], cell[1], cell[2], cell[3], family) for cell in expected}
    assert seen == expected


def test_a_flow_that_is_no_longer_allowed_ends_and_others_go_on(node: Node) -> None:
    policies(node, web=WEB)
    assert becomes(node, "other", "web", 80, False)
    server = node.space_of("web").inside(lambda: socket.create_server(("0.0.0.0", 80)))
    flows = {}
    for name in ("db", "node"):
        flows[name] = node.space_of(name).inside(lambda: socket.create_connection((node.address("web"), 80), 3))
    ends = {name: server.accept()[0] for name in flows}
    policies(node, web=WEB, deny=DENY)
    assert becomes(node, "db", "web", 80, False)
    ends["db"].sendall(b"pushed by the server")  # the reply direction of the flow ends too
    ends["node"].sendall(b"still there")
    assert flows["node"].recv(64) == b"still there"
    flows["db"].settimeout(0.5)
    with pytest.raises(TimeoutError):
        flows["db"].recv(64)
    policies(node, web=WEB)
    flows["db"].settimeout(5)
    assert flows["db"].recv(64) == b"pushed by the server"
    for sock in (*flows.values(), *ends.values(), server):
        sock.close()


@pytest.mark.long
def test_a_faulty_file_keeps_its_last_good_content(node: Node) -> None:
    policies(node, web=WEB)
    assert becomes(node, "other", "web", 80, False)
    policies(node, web=WEB.replace("port: 80", "port: 0"))
    assert until(lambda: problems(node) == ["policy-file"], 3)
    assert "spec.ingress[0].ports[0].port: 0 is not between 1 and 65535" in node.ask("status")["problems"][0]
    assert node.process is not None
    node.process.kill()
    node.process.wait(10)
    assert not passes(node, "other", "web", 80) and passes(node, "db", "web", 80)
    node.host.nft("flush ruleset")  # while no daemon runs: the next one has the policies from its records
    node.start()
    assert until(lambda: passes(node, "db", "web", 80), 3) and not passes(node, "other", "web", 80)
    policies(node)
    assert becomes(node, "other", "web", 80, True)
    assert problems(node) == []
    assert "pol_" not in node.host.nft("list table inet zlayer_cni")


@pytest.mark.long
def test_a_flush_opens_nothing(node: Node) -> None:
    policies(node, web=WEB)
    assert becomes(node, "other", "web", 80, False)
    node.host.nft("flush ruleset")
    assert until(lambda: "pol_in4" in node.host.nft("list ruleset"), 3)
    assert until(lambda: passes(node, "db", "web", 80), 3) and not passes(node, "other", "web", 80)
    assert problems(node) == ["fence-repaired"]
