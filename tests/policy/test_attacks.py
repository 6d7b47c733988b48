"""What a neighbour on one bridge may try against a pod that policies isolate: no form of packet gets past the rules."""

from __future__ import annotations

import functools
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.test_policy import HEAD, becomes, passes, policies
from tests.kernel.toolnode import Node, ip, running, until

pytestmark = [pytest.mark.root, pytest.mark.long]
PORT = 4545
CLOSED = HEAD % "closed" + "{podSelector: {matchLabels: {zlayer.io/name: web}}, policyTypes: [Ingress, Egress]}"
HALF = HEAD % "closed" + "{podSelector: {matchLabels: {zlayer.io/name: web}}, policyTypes: [Ingress]}"


@pytest.fixture(scope="module", params=["0", "1"], ids=["nf-call-0", "nf-call-1"])
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    directory = tmp_path_factory.mktemp("attacks")
    (directory / "policies").mkdir()
    containers: dict[str, tuple[str, str | None]] = {"web": ("web", None), "near": ("web", None), "far": ("db", None)}
    with running(directory, containers, settings=f"policies: {directory}/policies\n") as made:
        for tool in ("iptables", "ip6tables"):
            setting = Path(f"/proc/sys/net/bridge/bridge-nf-call-{tool}")
            made.host.inside(functools.partial(setting.write_text, request.param))
        yield made


def link_local(node: Node, name: str) -> str:
    """The container's link-local address."""
    words = ip("-n", node.space_of(name).name, "-6", "addr", "show", "dev", "eth0", "scope", "link").split()
    return words[words.index("inet6") + 1].partition("/")[0]


def hears(node: Node, name: str, client: str, target: str, family: socket.AddressFamily) -> bool:
    """Whether a datagram of `client` to `target` arrives at a socket of the container."""

    def listen() -> socket.socket:
        ear = socket.socket(family, socket.SOCK_DGRAM)
        ear.bind(("", PORT))
        ear.setblocking(False)
        return ear

    def send() -> None:
        with socket.socket(family, socket.SOCK_DGRAM) as mouth:
            mouth.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            mouth.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
            where = (target, PORT) if family is socket.AF_INET else (target, PORT, 0, socket.if_nametoindex("eth0"))
            mouth.sendto(b"attack", where)

    def heard(ear: socket.socket) -> bool:
        try:
            return ear.recv(64) == b"attack"
        except BlockingIOError:
            return False

    with node.space_of(name).inside(listen) as ear:
        for _ in range(3):
            node.space_of(client).inside(send)
            if until(lambda: heard(ear), 0.3):
                return True
    return False


FORMS = [("unicast", 4), ("unicast", 6), ("link-local", 6), ("broadcast", 4), ("all nodes", 6)]


def target_of(node: Node, form: str, server: str, family: int) -> str:
    match form:
        case "unicast":
            return node.address(server, family)
        case "link-local":
            return link_local(node, server)
        case "broadcast":
            return "255.255.255.255"
        case _:
            return "ff02::1"


@pytest.mark.parametrize(("form", "family"), FORMS)
def test_no_form_of_packet_reaches_or_leaves_an_isolated_pod(node: Node, form: str, family: int) -> None:
    af = socket.AF_INET if family == 4 else socket.AF_INET6
    policies(node)
    assert becomes(node, "far", "web", 80, True)
    into, out = target_of(node, form, "web", family), target_of(node, form, "near", family)
    assert hears(node, "web", "near", into, af), "without a policy it arrives"
    policies(node, closed=CLOSED)
    assert becomes(node, "far", "web", 80, False)
    assert not hears(node, "web", "near", into, af)
    assert not hears(node, "near", "web", out, af)
    policies(node, closed=HALF)
    assert becomes(node, "web", "far", 80, True)
    assert not hears(node, "web", "near", into, af)
    assert hears(node, "near", "web", out, af), "egress is free"
    assert passes(node, "node", "web", 80), "the node reaches its pods"
