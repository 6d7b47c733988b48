"""Two nodes that run the program as it is shipped, frozen, with an etcd that wants TLS, a user and a password.

What the freezing leaves out is missing here and nowhere else: certificates, the modules of TLS and of the resolver, the
engine's environment.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni.daemon import settings
from cni.daemon.cluster.etcd_client import EtcdClient
from cni.host import wg_engine

from .etcds import ADDRESS, GRACE, LEASE, PROGRAM, Clustered, ask_for_passwords, certificates
from .fleet import ROOT, arrives, echoes, inside, wait_for

FROZEN = Path(os.environ.get("ZLAYER_PROGRAM", ROOT / "dist/zlayer-cni.d/zlayer-cni"))
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(PROGRAM is None, reason="no etcd here (apt-get install etcd-server)"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make certificates with"),
    pytest.mark.skipif(not wg_engine.find(), reason="no WireGuard engine here (apt-get install wireguard-go)"),
    pytest.mark.skipif(not FROZEN.exists(), reason=f"{FROZEN} is not there: scripts/build makes it"),
]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Clustered]:
    at = certificates(tmp_path, ADDRESS)
    secret = tmp_path / "secret"
    secret.write_text("secret\n")
    # Short-lived tokens, so that they run out while the nodes are there.
    made = Clustered("p", "--cert-file", at["server.pem"], "--key-file", at["server.key"], "--auth-token-ttl", "3")
    try:
        client = EtcdClient(settings.Etcd(endpoints=(made.etcd.url,), ca_file=at["ca.pem"]))
        inside(f"/run/netns/{made.underlay}", lambda: ask_for_passwords(client))
        etcd = {"endpoints": [made.etcd.url], "lease": LEASE, "grace": GRACE, "ca_file": at["ca.pem"]}
        user = {"user": "root", "password_file": str(secret)}
        for number in (1, 2):
            node = made.member(number, start=False, cluster={"etcd": {**etcd, **user}})
            node.program = (str(FROZEN),)
            node.start()
        yield made
    finally:
        made.clean()


def test_the_frozen_program_with_etcd_by_tls_and_password(pair: Clustered, tmp_path: Path) -> None:
    assert pair.etcd.url.startswith("https://")
    one, two = pair.nodes.values()
    for node in (one, two):
        wait_for(lambda node=node: node.status().peer_count == 1, "a peer", 60)  # type: ignore[misc]
    a, b = one.container("web", isolationNetwork="red"), two.container("web", isolationNetwork="red")
    other = two.container("web")
    arrives(a, b)
    assert echoes(a, b, socket.SOCK_STREAM, 300_000)
    assert not a.pings(other.address, wait=0.4)
    # Tokens have run out by now, and connections break.
    pair.etcd.end(signal.SIGKILL)
    wait_for(lambda: any("etcd" in words for words in one.tool("status")["problems"]), "the problem is told", 60)
    assert a.pings(b.address)
    certificates(tmp_path, ADDRESS)  # renewed, by another CA
    pair.etcd.start()
    for node in (one, two):
        wait_for(lambda node=node: node.tool("status")["problems"] == [], "all is well", 60)  # type: ignore[misc]
    late = two.container("web", isolationNetwork="red")
    arrives(a, late)
    known = {key: value for key, value in one.settings["cluster"]["etcd"].items() if key != "ca_file"}
    wrong = pair.member(3, start=False, cluster={"etcd": known})
    wrong.program = one.program
    wrong.start()
    assert any("certificate" in words for words in wrong.tool("status")["problems"])
    assert wrong.status().peer_count == 0
