"""A new key while etcd is lost: before it is published, and between the write and its answer."""

from __future__ import annotations

import base64
import contextlib
import signal
import socket
import threading
from collections.abc import Iterator

import pytest

from .etcds import ADDRESS, GRACE, LEASE, PROGRAM, Clustered
from .fleet import Container, Node, arrives, inside, wait_for

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(PROGRAM is None, reason="no etcd here (apt-get install etcd-server)"),
]
PORT = 2399


class Proxy:
    """Connections to etcd, which can be lost after a request that holds a text has been carried out."""

    def __init__(self, netns: str) -> None:
        self._netns = netns
        self._server = inside(netns, lambda: socket.create_server((ADDRESS, PORT)))
        self.fatal = b""  # the text after which no connection is left
        self.lost = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._server.accept()[0]
                threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            if self.lost.is_set():
                return
            etcd = inside(self._netns, lambda: socket.create_connection((ADDRESS, 2379)))
            back = threading.Thread(target=self._answers, args=(etcd, client), daemon=True)
            back.start()
            with etcd:
                while data := client.recv(1 << 20):
                    if self.fatal and self.fatal in data:
                        self.lost.set()
                    etcd.sendall(data)

    def _answers(self, etcd: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := etcd.recv(1 << 20):
                if self.lost.is_set():
                    break
                client.sendall(data)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def heal(self) -> None:
        self.fatal = b""
        self.lost.clear()

    def close(self) -> None:
        self._server.close()


@pytest.fixture(scope="module")
def clustered() -> Iterator[Clustered]:
    made = Clustered("k")
    try:
        yield made
    finally:
        made.clean()


@pytest.fixture(scope="module")
def proxy(clustered: Clustered) -> Iterator[Proxy]:
    made = Proxy(f"/run/netns/{clustered.underlay}")
    yield made
    made.close()


@pytest.fixture(scope="module")
def pair(clustered: Clustered, proxy: Proxy) -> tuple[Container, Container]:
    """A container on each of two nodes; the first node reaches etcd by the proxy."""
    by_proxy = {"endpoints": [f"http://{ADDRESS}:{PORT}"], "lease": LEASE, "grace": GRACE}
    one, two = clustered.member(1, cluster={"etcd": by_proxy}), clustered.member(2)
    for node in (one, two):
        wait_for(lambda node=node: node.status().peer_count == 1, "a peer")  # type: ignore[misc]
    here, there = one.container(), two.container()
    arrives(here, there)
    return here, there


def rotate(node: Node) -> tuple[int, str]:
    done = node.cli("peer", "rotate", "--run-dir", str(node.directory / "run"))
    return done.returncode, done.stderr + done.stdout


def test_a_key_is_not_replaced_while_etcd_is_down(clustered: Clustered, pair: tuple[Container, Container]) -> None:
    here, there = pair
    key = here.node.status().public_key
    clustered.etcd.end(signal.SIGKILL)
    code, text = rotate(here.node)
    clustered.etcd.start()
    assert (code, "the key was not replaced" in text) == (1, True), text
    assert here.node.status().public_key == key
    assert here.pings(there.address)
    wait_for(lambda: here.node.tool("status")["problems"] == [], "etcd is reached again")
    assert rotate(here.node)[0] == 0
    wait_for(lambda: here.pings(there.address, wait=1), "the tunnel with the new key")
    assert here.node.status().public_key != key


def test_etcd_is_lost_between_the_write_and_its_answer(
    clustered: Clustered, proxy: Proxy, pair: tuple[Container, Container]
) -> None:
    """The other node has the new key, and this node does not know that: it keeps its key, and the other follows."""
    here, there = pair
    one, two = here.node, there.node
    wait_for(lambda: one.tool("status")["problems"] == [], "all is well")
    key = one.status().public_key
    record = f"{clustered.base(one)}node/{clustered.document(one)['identity']}"
    proxy.fatal = base64.b64encode(record.encode())
    code, text = rotate(one)
    assert (code, "the key was not replaced" in text) == (1, True), text
    assert one.status().public_key == key
    wait_for(lambda: key not in two.wg("show", two.device, "peers").split(), "the other node has the new key")
    proxy.heal()
    wait_for(lambda: key in two.wg("show", two.device, "peers").split(), "the other node follows back")
    wait_for(lambda: here.pings(there.address, wait=1), "the tunnel")
    wait_for(lambda: one.tool("status")["problems"] == [], "all is well")
