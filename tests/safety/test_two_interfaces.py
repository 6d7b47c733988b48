"""A container on two networks answers by each of its addresses, as with the reference plugins; also with `sbr`."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.mesh.fleet import Container, Node, run
from tests.safety.test_kernel_settings import RANGE6

SBR = next(
    (path for path in (Path("/usr/lib/cni/sbr"), Path.home() / ".cache/zlayer-cni/reference/sbr") if path.exists()),
    None,
)


def plugin(box: Container, verb: str, ifname: str, program: tuple[str, ...] = (), **conf: Any) -> dict[str, Any]:
    """A verb for one interface of the container; what it prints. Raises AssertionError if it fails."""
    node = box.node
    places = {"runDir": str(node.directory / "run"), "dataDir": str(node.directory / "data"), "autostart": False}
    given = {"cniVersion": "1.0.0", "name": f"net-{ifname}", "type": "zlayer-cni", **places, **conf}
    env = {"CNI_COMMAND": verb, "CNI_CONTAINERID": box.name, "CNI_NETNS": box.netns, "CNI_IFNAME": ifname}
    words = ["ip", "netns", "exec", node.name, *(program or node.program)]
    done = subprocess.run(
        words,
        input=json.dumps(given),
        env={**os.environ, **env, "CNI_PATH": "/opt/cni/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done
    return dict(json.loads(done.stdout or "{}"))


def addresses(result: dict[str, Any]) -> list[str]:
    return [each["address"].partition("/")[0] for each in result["ips"]]


def rules(box: Container) -> list[str]:
    """The rules of both families, but for the kernel's own."""
    found = [line for family in ("-4", "-6") for line in box.run("ip", family, "rule").splitlines()]
    return [line for line in found if "from all" not in line]


def box_of(node: Node, sbr_on: str = "") -> tuple[Container, dict[str, dict[str, Any]]]:
    """A container with two interfaces, and the result of each; `sbr` is chained behind one of them."""
    box = node.unattached("two")
    results = {}
    for ifname, service in (("eth0", "web"), ("net1", "db")):
        results[ifname] = plugin(box, "ADD", ifname, service=service)
        if ifname == sbr_on:
            assert SBR is not None
            plugin(box, "ADD", ifname, (str(SBR),), type="sbr", prevResult=results[ifname])
    return box, results


@pytest.mark.parametrize("sbr_on", ["", "eth0", "net1"])
def test_both_addresses_answer(frozen: Callable[..., Node], sbr_on: str) -> None:
    if sbr_on and SBR is None:
        pytest.skip("no sbr here (apt-get install containernetworking-plugins)")
    node = frozen(1, cluster_cidr6=RANGE6)
    client = node.container("client")
    box, results = box_of(node, sbr_on)
    targets = [*addresses(results["eth0"]), *addresses(results["net1"])]
    assert len(targets) == 4
    for target in targets:
        assert client.pings(target, wait=1), target
        # The node itself, and an address beyond the default route.
        family = "-6" if ":" in target else "-4"
        assert run("ip", "netns", "exec", node.name, "ping", family, "-n", "-c", "1", "-W", "1", target)
    for target in targets[::2]:
        box.run("ping", "-n", "-c", "1", "-W", "1", "-I", target, "198.51.100.254")
    for ifname, result in results.items():
        plugin(box, "CHECK", ifname, service={"eth0": "web", "net1": "db"}[ifname], prevResult=result)
    # A daemon that begins knows of it.
    node.end()
    node.start()
    plugin(box, "CHECK", "net1", service="db", prevResult=results["net1"])
    if sbr_on:
        assert SBR is not None
        plugin(box, "DEL", sbr_on, (str(SBR),), type="sbr", prevResult=results[sbr_on])
    plugin(box, "DEL", "net1", service="db", prevResult=results["net1"])
    assert rules(box) == []
    if sbr_on != "eth0":
        assert all(client.pings(target, wait=1) for target in addresses(results["eth0"]))


def test_two_interfaces_on_one_bridge_answer(frozen: Callable[..., Node]) -> None:
    node = frozen(1, cluster_cidr6=RANGE6)
    client, fellow = node.container("client"), node.container("web")
    box = node.unattached("two")
    results = [plugin(box, "ADD", ifname, service="web") for ifname in ("eth0", "net1")]
    for target in (*addresses(results[0]), *addresses(results[1])):
        assert client.pings(target, wait=1), target
        assert fellow.pings(target, wait=1), target


def test_a_lost_rule_is_told_by_check(frozen: Callable[..., Node]) -> None:
    node = frozen(1)
    box, results = box_of(node)
    (rule,) = rules(box)
    box.run("ip", "rule", "del", "from", rule.split()[2])
    with pytest.raises(AssertionError, match=r"the route to 0\.0\.0\.0/0 by [0-9.]+ is missing"):
        plugin(box, "CHECK", "net1", service="db", prevResult=results["net1"])
