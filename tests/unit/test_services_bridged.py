"""Which programs translate services, and what is said where bridged packets pass connection tracking by."""

from __future__ import annotations

import pytest

from cni.host.services import describe, translators


def chain(family: str, table: str, name: str) -> dict[str, object]:
    return {"chain": {"family": family, "table": table, "name": name}}


@pytest.mark.parametrize(
    ("chains", "legacy", "virtual", "expected"),
    [
        ([], [], [], {4: set(), 6: set()}),
        ([chain("ip", "filter", "KUBE-SERVICES"), chain("ip", "nat", "DOCKER")], [], [], {4: set(), 6: set()}),
        ([chain("ip", "nat", "KUBE-SERVICES")], [], [], {4: {"kube-proxy"}, 6: set()}),
        ([chain("ip6", "kube-proxy", "services")], [], [], {4: set(), 6: {"kube-proxy"}}),
        ([], [6], ["10.96.0.1"], {4: {"IPVS"}, 6: {"kube-proxy"}}),
        ([], [], ["fd00:96::1"], {4: set(), 6: {"IPVS"}}),
    ],
)
def test_who_translates(chains: list[object], legacy: list[int], virtual: list[str], expected: object) -> None:
    assert translators({"nftables": chains}, legacy, virtual) == expected


def test_what_is_said() -> None:
    kube = {4: {"kube-proxy"}, 6: set[str]()}
    assert describe({4: "0", 6: "0"}, kube).startswith("net.bridge.bridge-nf-call-iptables is 0, and kube-proxy ")
    assert describe({4: None}, kube).startswith("br_netfilter is not loaded, and kube-proxy ")
    assert describe({6: "0"}, kube) == ""
    assert describe({}, kube) == ""
    both = {4: {"kube-proxy"}, 6: {"IPVS"}}
    said = describe({4: "0", 6: "0"}, both)
    assert "bridge-nf-call-iptables and net.bridge.bridge-nf-call-ip6tables is 0, and IPVS and kube-proxy" in said
