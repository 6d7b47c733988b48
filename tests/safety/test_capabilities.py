"""The network list of `install`: each declared capability takes effect; aliases that are none are told."""

from __future__ import annotations

import ipaddress
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.mesh.fleet import Container, Node

MAC = "02:00:5e:10:00:07"
ANNOTATIONS = "io.kubernetes.cri.pod-annotations"
SERVICE = "web"
SENT: dict[str, Any] = {
    "mac": MAC,
    "dns": {"servers": ["192.0.2.53"], "searches": ["example.test"], "options": ["ndots:2"]},
    "aliases": ["db"],
    ANNOTATIONS: {"com.zlayer.isolation_network": "by-annotation"},
}
"""What a runtime sends for each declared capability; the address is added once the service has a subnet."""


def taken(node: Node, container: Container) -> dict[str, Any]:
    """What became of each of SENT, as the kernel, the result and the daemon have it."""
    link = json.loads(container.run("ip", "-j", "addr", "show", "eth0"))[0]
    (attachment,) = [a for a in node.tool("attachments") if a["container_id"] == container.name]
    dns = container.result["dns"]
    return {
        "ips": [each["local"] for each in link["addr_info"] if each["family"] == "inet"],
        "mac": link["address"],
        "dns": {"servers": dns["nameservers"], "searches": dns["search"], "options": dns["options"]},
        "aliases": [name for name in attachment["names"] if "." not in name],
        ANNOTATIONS: {"com.zlayer.isolation_network": attachment["isolation_network"]},
    }


def installed(program: tuple[str, ...], root: Path, version: str) -> dict[str, Any]:
    """The entry of ours in the list that `install` writes below `root`."""
    command = [*program, "install", "--root", str(root), "--no-service", "--cni-version", version]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((root / "etc/cni/net.d/10-zlayer.conflist").read_text())
    (entry,) = [plugin for plugin in found["plugins"] if plugin["type"] == "zlayer-cni"]
    return dict(entry)


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_every_declared_capability_takes_effect(
    frozen: Callable[..., Node], program: tuple[str, ...], tmp_path: Path, version: str
) -> None:
    declared = installed(program, tmp_path, version)["capabilities"]
    assert all(declared.values())
    assert set(declared) == {"ips", *SENT}
    node = frozen(1)
    gateway = node.container(SERVICE).result["ips"][0]["gateway"]
    sent = {"ips": [str(ipaddress.ip_address(gateway) + 9)], **SENT}
    assert taken(node, node.container(SERVICE, runtimeConfig=sent)) == sent


@pytest.mark.parametrize("aliases", ["db", {"zlt-mesh": 1}], ids=json.dumps)
def test_aliases_that_are_no_list_of_names_are_told(frozen: Callable[..., Node], aliases: object) -> None:
    node = frozen(1)
    capabilities = {"aliases": True, "mac": True}
    container = node.container(capabilities=capabilities, runtimeConfig={"aliases": aliases, "mac": MAC})
    assert json.loads(container.run("ip", "-j", "link", "show", "eth0"))[0]["address"] == MAC
    assert "runtimeConfig.aliases: has no effect here, it is no list" in node.call("DEL", container).stderr


def test_aliases_by_network_are_those_of_this_network(frozen: Callable[..., Node]) -> None:
    node = frozen(1)
    sent = {"aliases": {"zlt-mesh": ["db"], "else": ["another"]}}
    container = node.container(capabilities={"aliases": True}, runtimeConfig=sent)
    (attachment,) = [a for a in node.tool("attachments") if a["container_id"] == container.name]
    assert "db" in attachment["names"]
    assert "another" not in attachment["names"]
