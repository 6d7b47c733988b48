"""A router that maps ports: miniupnpd, asked by PCP, and by NAT-PMP."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.mesh.fleet import Node, run, wait_for

from .lab import Lab
from .test_paths import MEET, SERVERS, meet, path_of

PUBLIC = "11.0.0.6"  # miniupnpd maps no port of an address that RFC 5737 reserves for documentation
TABLE = """
table inet filter {
    chain forward { type filter hook forward priority 10; policy accept; jump miniupnpd; }
    chain miniupnpd { }
    chain prerouting { type nat hook prerouting priority -110; policy accept; jump prerouting_miniupnpd; }
    chain postrouting { type nat hook postrouting priority 90; policy accept; jump postrouting_miniupnpd; }
    chain prerouting_miniupnpd { }
    chain postrouting_miniupnpd { }
}
"""


@contextmanager
def mapping_router(lab: Lab, number: int) -> Iterator[None]:
    """Have the router of a site map ports."""
    router = f"{lab.nodes[number].name}r"
    run("ip", "netns", "exec", router, "nft", TABLE)
    run("ip", "netns", "exec", router, "nft", 'insert rule ip zlt_nat input iifname "lan" accept')
    conf = lab.directory / "miniupnpd.conf"
    lines = ["ext_ifname=wan", "listening_ip=lan", "enable_natpmp=yes", "enable_upnp=no", "secure_mode=yes"]
    run("ip", "-n", router, "address", "add", f"{PUBLIC}/32", "dev", "wan")
    run("ip", "-n", lab.underlay, "route", "add", PUBLIC, "via", lab.public_address(number))
    lines += [f"ext_ip={PUBLIC}", "min_lifetime=120"]
    lines += ["max_lifetime=86400", f"lease_file={lab.directory}/leases", "uuid=00000000-0000-0000-0000-000000000000"]
    lines += ["upnp_forward_chain=miniupnpd", "upnp_nat_chain=prerouting_miniupnpd", "upnp_table_name=filter"]
    lines += ["upnp_nat_table_name=filter", "upnp_nat_postrouting_chain=postrouting_miniupnpd"]
    conf.write_text("\n".join([*lines, "allow 1024-65535 0.0.0.0/0 1024-65535", ""]))
    words = ["ip", "netns", "exec", router, "miniupnpd", "-d", "-f", str(conf), "-P", str(lab.directory / "upnp.pid")]
    with (lab.directory / "upnp.log").open("wb") as log, subprocess.Popen(words, stdout=log, stderr=log) as server:
        try:
            yield
        finally:
            server.terminate()


def mapped(node: Node) -> str:
    return str(node.tool("netcheck")["port_mapping"])


@pytest.mark.parametrize("protocol", ["PCP", "NAT-PMP"])
def test_a_symmetric_side_with_a_mapped_port_is_reached_directly(
    lab: Lab, protocol: str, measured: Callable[[str], None]
) -> None:
    lab.start_stun()
    first = lab.joined("sym", 1, start=False, nat=SERVERS)
    with mapping_router(lab, 1):
        if protocol == "NAT-PMP":  # the requests of PCP are longer
            drop = 'insert rule ip zlt_nat input iifname "lan" udp dport 5351 udp length > 30 drop'
            run("ip", "netns", "exec", f"{first.name}r", "nft", drop)
        first.start()
        lab.wait_for_device(first)
        wait_for(lambda: f"by {protocol}" in mapped(first), "the mapping", 15, step=0.5)
        second = lab.joined("sym", 2, nat=SERVERS)
        wait_for(lambda: path_of(second, first)["path"] == "hole-punched", "the path", MEET)
        found = path_of(second, first)
        measured(f"sym with {protocol}, sym: {found['path']}: {found['path_why']}; {mapped(first)}")
        assert str(found["endpoint"]) == mapped(first).partition(" ")[0]


def test_a_router_without_either_is_told(lab: Lab) -> None:
    first, _, _ = meet(lab, "prc", "public", nat=SERVERS)
    wait_for(lambda: "neither PCP nor NAT-PMP" in mapped(first), "the word", 15, step=0.5)
