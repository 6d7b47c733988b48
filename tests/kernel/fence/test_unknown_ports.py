"""Ports on the overlay's bridges that another program added under a name of its own.

`meta ibrname` (CONFIG_NFT_BRIDGE_META) closes them for all; without it they reach one another and the node's ARP.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from cni.daemon.fence import ruleset as fence
from cni.daemon.fence.rule_comparison import has_bridge_names

from .lab import BRIDGES, Lab


def finds(lab: Lab, src: str, dst: str) -> bool:
    """Whether the neighbour `dst` answers ARP."""
    space, target = lab.places[src].space, lab.places[dst]
    space.run("sh", "-c", f"ip neigh flush all; ping -n -c1 -W1 {target.four} >/dev/null || true")
    return target.mac in space.run("ip", "neigh", "show", target.four)


def teaches_the_node(lab: Lab, src: str) -> bool:
    """Whether the node learns a neighbour from the port's ARP."""
    place, gateway = lab.places[src], BRIDGES["sh"][2][0].partition("/")[0]
    lab.host.run("ip", "neigh", "flush", "dev", BRIDGES["sh"][0])
    place.space.run("sh", "-c", f"ip neigh flush all; ping -n -c1 -W1 {gateway} >/dev/null || true")
    return place.mac in lab.host.run("ip", "neigh", "show", "dev", BRIDGES["sh"][0])


@pytest.mark.parametrize("closed", [True, False], ids=["with-bridge-names", "without"])
def test_a_port_of_another_name_is_closed_where_the_kernel_matches_bridges(lab: Lab, closed: bool) -> None:
    if closed and not has_bridge_names():
        pytest.skip("this kernel lacks CONFIG_NFT_BRIDGE_META: scripts/test vm runs this test on one that has it")
    lab.add_container("unknown-tap", "sh", 8, 60, None, kind="unknown")
    lab.run(fence.base(replace(lab.node, bridge_names=closed)))
    for one, other in (("unknown-sh", "unknown-tap"), ("unknown-tap", "unknown-sh")):
        assert finds(lab, one, other) is not closed
        assert teaches_the_node(lab, one) is not closed
        assert not finds(lab, one, "flat-sh")
        assert not finds(lab, "flat-sh", one)
    assert finds(lab, "red-web", "red-web2"), "a port that was added is open"


def test_the_product_puts_it_in_force_where_the_kernel_has_it(lab: Lab) -> None:
    listing = lab.host.run("nft", "list", "chain", "bridge", "zlayer_cni", "prerouting")
    assert ("meta ibrname @bridges" in listing) is has_bridge_names()
