"""A node of a cluster whose services have a part of the range: `service_cidr` with a store."""

from __future__ import annotations

import ipaddress
import json
import signal

import pytest

from .etcds import PROGRAM, Clustered
from .fleet import wait_for

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(PROGRAM is None, reason="no etcd here (apt-get install etcd-server)"),
]
OWN = ipaddress.IPv4Network("10.200.64.0/22")


def test_a_new_service_without_the_store_has_a_subnet_of_the_part(clustered: Clustered) -> None:
    """Two new services start from the slots that are claimed in advance."""
    node = clustered.member(1, service_cidr=str(OWN))

    def spare() -> list[ipaddress.IPv4Network]:
        found = {key: json.loads(value) for key, value in clustered.records(node).items() if key.startswith("slot/")}
        names = [key.removeprefix("slot/").replace("_", "/") for key, slot in found.items() if slot["use"] == "spare"]
        return [ipaddress.IPv4Network(name) for name in names]

    wait_for(lambda: len(spare()) == 2, "two slots are claimed in advance")
    assert all(network.subnet_of(OWN) for network in spare())
    clustered.etcd.end(signal.SIGKILL)
    wait_for(lambda: any("etcd" in words for words in node.tool("status")["problems"]), "the problem is told")
    made = [node.container(name) for name in ("first", "second")]
    assert all(ipaddress.ip_address(container.address) in OWN for container in made)
