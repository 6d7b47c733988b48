"""Containers that a ZLayer agent attaches, with nothing configured on the node: `wget http://web` inside them.

The agent writes the container's resolv.conf from what it passes to `attach_container`: the address of its resolver,
without the port, and its search domains.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni.overlay import wire
from tests.dns.conftest import Names, running
from tests.dns.runtimes import SERVED
from tests.kernel.overlayd import Agent
from tests.mesh.fleet import wait_for

DEPLOYMENT = "shop"
DOMAINS = f"{DEPLOYMENT}.zlayer.local zlayer.local"  # as agents pass them: a list in one text


@contextlib.contextmanager
def process(*words: str) -> Iterator[int]:
    """A process in a network namespace of its own: a container, as an agent sees it."""
    own = Path("/proc/self/ns/net").stat().st_ino
    with subprocess.Popen(["unshare", "-n", *words], stdout=subprocess.DEVNULL) as made:
        wait_for(lambda: Path(f"/proc/{made.pid}/ns/net").stat().st_ino != own, "a namespace")
        try:
            yield made.pid
        finally:
            made.kill()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[tuple[Names, Agent]]:
    with running(tmp_path) as (node, _):
        made = Agent(str(node.dir / "agents.sock"))
        yield node, made
        made.close()


def fetch(node: Names, pid: int, server: str, domains: str, host: str) -> str:
    """What wget prints in the container, with the resolv.conf that the agent writes."""
    (node.dir / "resolv.conf").write_text(f"nameserver {server}\nsearch {domains}\n")
    (node.dir / "nsswitch.conf").write_text("hosts: dns\n")
    mounts = "".join(f"mount --bind {node.dir}/{name} /etc/{name} && " for name in ("resolv.conf", "nsswitch.conf"))
    inside = ["nsenter", "-t", str(pid), "-n", "unshare", "-m", "sh", "-c", f'{mounts} exec "$@"', "sh"]
    command = [*inside, "wget", "-nv", "-T", "5", "-t", "1", "-O", "-", f"http://{host}/"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout.strip()


def test_wget_http_web(agent: tuple[Names, Agent]) -> None:
    node, asks = agent
    node_ip = asks.setup_global(deployment=DEPLOYMENT, slice_cidr="10.200.0.0/26")
    assert isinstance(node_ip, wire.BridgeName), node_ip
    server = str(asks.status().node_ip)
    page = node.dir / "www"
    page.mkdir()
    (page / "index.html").write_text(f"{SERVED}\n")
    for service in ("web", "client", "vault"):
        asks.setup(service)
    with process("busybox", "httpd", "-f", "-p", "80", "-h", str(page)) as web, process("sleep", "600") as client:
        told = {"dns_server": server, "dns_domain": DOMAINS}
        asks.attach(web, "web", **told)
        asks.attach(client, "client", **told)
        wait_for(lambda: fetch(node, client, server, DOMAINS, "web") == SERVED, "the page")
        # The names of the agent's own server, which containers may have been told.
        names = ("web.service", f"web.{DEPLOYMENT}", f"web.service.{DEPLOYMENT}", f"web.{DEPLOYMENT}.service")
        for name in [*names, "web.service.local", "web.overlay.local", f"web.{DEPLOYMENT}.zlayer.local"]:
            assert fetch(node, client, server, DOMAINS, name) == SERVED, name
        with process("sleep", "600") as member:
            asks.attach(member, "vault", isolation_network="closed", **told)
            assert fetch(node, member, server, DOMAINS, "web") == ""


def test_a_guest_is_told_the_nodes_server(agent: tuple[Names, Agent]) -> None:
    """What an attach names wins; without it the guest gets the node's own server and its search domains."""
    _, asks = agent
    asks.setup_global(deployment=DEPLOYMENT, slice_cidr="10.200.0.0/26")
    asks.setup("web")
    own = asks.ask(wire.AttachContainer(wire.GuestManaged("vm-1"), "web", False))
    assert isinstance(own, wire.GuestConfig), own
    assert own.dns_server == str(asks.status().node_ip)
    assert own.dns_domain is not None and f"{DEPLOYMENT}.zlayer.local" in own.dns_domain.split()
    named = asks.ask(
        wire.AttachContainer(
            wire.GuestManaged("vm-2"), "web", False, dns_server="192.0.2.53", dns_domain="corp.example"
        )
    )
    assert isinstance(named, wire.GuestConfig), named
    assert (named.dns_server, named.dns_domain) == ("192.0.2.53", "corp.example")
