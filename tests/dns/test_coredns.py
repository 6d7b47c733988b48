"""A real CoreDNS in a pod, with the server block of docs/dns.md: pods resolve the overlay's names by it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dns.conftest import SERVER4, ZONE, Names, running
from tests.mesh.fleet import wait_for

ROOT = Path(__file__).parents[2]
COREDNS = "1.12.1"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "zlayer-cni/reference")
PROGRAM = CACHE / f"coredns-{COREDNS}"

pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason="no CoreDNS here (tests/dns/build-coredns)")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Names]:
    """Containers, one of which runs CoreDNS with the documented block."""
    (block,) = re.findall(r"`(zlayer\.zlayer\.local:53 \{[^`]*\})`", (ROOT / "docs/dns.md").read_text())
    with running(tmp_path_factory.mktemp("coredns"), "dns: {upstreams: []}\n") as (made, make):
        for name, network in (("coredns", None), ("asker", None), ("web", None), ("vault", "closed")):
            made.attach(name, make(), name, **({"isolationNetwork": network} if network else {}))
        (made.dir / "Corefile").write_text(
            block.replace("ADDRESS", SERVER4).replace("{ ", "{\n").replace(" }", "\n}\n")
        )
        command = [
            "nsenter",
            f"--net={made.space_of('coredns').path}",
            str(PROGRAM),
            "-conf",
            str(made.dir / "Corefile"),
        ]
        with subprocess.Popen(command, cwd=made.dir) as process:
            try:
                wait_for(lambda: answers(made), "CoreDNS")
                yield made
            finally:
                process.terminate()


def answers(node: Names) -> bool:
    try:
        return bool(node.addresses("asker", node.full("web"), server=node.address("coredns"), seconds=1))
    except OSError:
        return False


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
@pytest.mark.parametrize(("kind", "version"), [("A", 4), ("AAAA", 6)])
def test_the_zone_by_the_stub(node: Names, kind: str, version: int, tcp: bool):
    told = node.addresses("asker", f"web.{ZONE}.", kind, server=node.address("coredns"), tcp=tcp)
    assert told == {node.address("web", version)}


def test_what_the_pod_of_coredns_may_not_reach_does_not_exist(node: Names):
    """CoreDNS asks as its own pod, for every asker. A member of a network does not reach the pod of CoreDNS."""
    assert node.code("asker", f"vault.{ZONE}.", server=node.address("coredns")) == "NXDOMAIN"
    with pytest.raises(TimeoutError):
        node.code("vault", f"vault.{ZONE}.", server=node.address("coredns"), seconds=1)
