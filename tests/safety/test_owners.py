"""A name that follows from a hash does not say whose a thing is: nothing is taken from a living container by it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cni import naming
from tests.mesh.fleet import Container, Node, run, wait_for

NETWORK = "zlt-mesh"
PAIR = ("cc8084", "c1ed10e")
"""Two container IDs whose host ends have one name on NETWORK with eth0: 4 million candidates, 1.2 s of search."""


def unattached(node: Node, name: str) -> Container:
    """A container of that ID, with a namespace and nothing in it."""
    before = Path("/proc/self/ns/net").stat().st_ino
    process = subprocess.Popen(["unshare", "-n", "sleep", "3600"])
    made = Container(node, name, process, "web")
    node.containers.append(made)
    wait_for(lambda: Path(made.netns).stat().st_ino != before, "a namespace")
    return made


def refusal(node: Node, verb: str, container: Container) -> dict[str, object]:
    """The error that a verb answers."""
    with pytest.raises(RuntimeError) as caught:
        node.plugin(verb, container)
    text = str(caught.value)
    found: dict[str, object] = json.JSONDecoder().raw_decode(text[text.index("{") :])[0]
    return found


def works(container: Container) -> bool:
    """Whether the container reaches its gateway."""
    route = json.loads(container.run("ip", "-j", "route", "show", "default"))
    return bool(route) and container.pings(route[0]["gateway"])


def test_a_second_attachment_whose_port_has_the_same_name_is_refused(frozen: Callable[..., Node]) -> None:
    node = frozen(1)
    one, two = (unattached(node, name) for name in PAIR)
    veth = naming.attachment_veth(NETWORK, one.name, "eth0")
    assert veth == naming.attachment_veth(NETWORK, two.name, "eth0")
    node.plugin("ADD", one)
    index = node.ip("link", "show", veth)[0]["ifindex"]
    said = refusal(node, "ADD", two)
    assert said["code"] == 101
    assert veth in str(said["msg"]) and one.name in str(said["msg"])
    node.plugin("DEL", two)  # a runtime calls it after every failed ADD
    assert node.ip("link", "show", veth)[0]["ifindex"] == index
    assert works(one)
    node.plugin("DEL", one)
    node.plugin("ADD", two)
    assert works(two)


def test_a_deletion_without_a_daemon_takes_nothing_from_another(frozen: Callable[..., Node]) -> None:
    node = frozen(1)
    one, two = (unattached(node, name) for name in PAIR)
    veth = naming.attachment_veth(NETWORK, one.name, "eth0")
    node.plugin("ADD", one)
    node.end()
    said = node.call("DEL", two).stderr
    assert "another attachment's" in said
    assert node.ip("link", "show", veth)
    node.start()
    assert works(one)


def test_a_link_that_is_not_ours_is_not_taken_away(frozen: Callable[..., Node]) -> None:
    node = frozen(1)
    one = unattached(node, PAIR[0])
    veth = naming.attachment_veth(NETWORK, one.name, "eth0")
    run("ip", "-n", node.name, "link", "add", veth, "type", "bridge")
    assert refusal(node, "ADD", one)["code"] == 101
    node.plugin("DEL", one)
    assert node.ip("-d", "link", "show", veth)[0]["linkinfo"]["info_kind"] == "bridge"


def test_a_port_of_an_older_version_is_marked_when_the_daemon_starts(frozen: Callable[..., Node]) -> None:
    node = frozen(1)
    one = unattached(node, PAIR[0])
    veth = naming.attachment_veth(NETWORK, one.name, "eth0")
    node.plugin("ADD", one)
    mark = naming.owner_mark(NETWORK, one.name, "eth0")
    assert node.ip("link", "show", veth)[0]["ifalias"] == mark
    node.end()
    run("ip", "-n", node.name, "link", "set", veth, "alias", "")
    assert "ifalias" not in node.ip("link", "show", veth)[0]
    node.start()
    assert node.ip("link", "show", veth)[0]["ifalias"] == mark
    node.plugin("DEL", one)
    assert veth not in {link["ifname"] for link in node.ip("link", "show")}
