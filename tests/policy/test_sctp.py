"""SCTP by rules alone: INIT chunks from raw sockets, as the kernel here has no SCTP of its own."""

from __future__ import annotations

import functools
import socket
import struct
from collections.abc import Iterator

import pytest

from tests.kernel.fence import packets
from tests.kernel.test_policy import HEAD, becomes, policies
from tests.kernel.toolnode import Node, running, until

pytestmark = [pytest.mark.root, pytest.mark.long]
SCTP = 132
POLICY = HEAD % "sctp" + (
    "{podSelector: {matchLabels: {zlayer.io/service: web}}, ingress: [{from: [{podSelector: {matchLabels: "
    "{zlayer.io/name: db}}}], ports: [{protocol: SCTP, port: 7001, endPort: 7003}, {protocol: TCP, port: 7009}]}]}"
)
CONTAINERS: dict[str, tuple[str, str | None]] = {
    **dict.fromkeys(("web", "near"), ("web", None)),
    **dict.fromkeys(("db", "other"), ("db", None)),
}


@pytest.fixture(scope="module", params=["bridge", "routed"])
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    directory = tmp_path_factory.mktemp("sctp")
    (directory / "policies").mkdir()
    settings = f"policies: {directory}/policies\nattach: {request.param}\n"
    with running(directory, CONTAINERS, settings=settings) as made:
        yield made


def arrives(node: Node, client: str, port: int, family: int) -> bool:
    """Whether an INIT from the client to that port of `web` arrives there."""
    af = socket.AF_INET if family == 4 else socket.AF_INET6
    source = 30000 + port + 100 * ["db", "other", "near"].index(client)

    def raw() -> socket.socket:
        made = socket.socket(af, socket.SOCK_RAW, SCTP)
        made.setblocking(False)
        return made

    def heard(ear: socket.socket) -> bool:
        try:
            data = ear.recv(2048)
        except BlockingIOError:
            return False
        at = (data[0] & 15) * 4 if family == 4 else 0
        return data[at : at + 4] == struct.pack(">HH", source, port)

    where = (node.address("web", family), 0)
    with node.space_of("web").inside(raw) as ear, node.space_of(client).inside(raw) as mouth:
        for _ in range(2):
            mouth.sendto(packets.sctp(source, port, 1, 0, b""), where)
            if until(functools.partial(heard, ear), 0.4):
                return True
    return False


@pytest.mark.parametrize("family", [4, 6])
def test_an_association_begins_as_the_policies_say(node: Node, family: int) -> None:
    cells = [(client, port) for client in ("db", "other", "near") for port in (7001, 7003, 7004, 7009)]
    policies(node)
    assert becomes(node, "other", "web", 80, True)
    assert all(arrives(node, client, port, family) for client, port in cells), "without a policy"
    policies(node, sctp=POLICY)
    assert becomes(node, "other", "web", 80, False)
    seen = {(client, port) for client, port in cells if arrives(node, client, port, family)}
    assert seen == {("db", 7001), ("db", 7003)}
    told = {
        (client, port)
        for client, port in cells
        for path in node.why(node.address(client, family), node.address("web", family), f"{port}/sctp")["paths"]
        if path["allowed"]
    }
    assert told == seen
