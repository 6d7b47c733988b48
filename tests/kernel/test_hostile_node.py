"""A real daemon against people who may not command it: tenants who choose what a runtime passes on, and local users
without privileges. The daemon and the plugin run from source, in namespaces `zlt-tool*`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_fence_daemon import Fenced, noded
from toolnode import Space

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

UNAVAILABLE = 103
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
Make = Callable[[], Space]


@pytest.fixture(scope="module")
def hosting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fenced, Make]]:
    """A node with a member of each of two networks, on one bridge."""
    with noded(tmp_path_factory.mktemp("h")) as (node, make):
        node.add("red1", make(), "web", "red")
        node.add("blue1", make(), "web", "blue")
        yield node, make


def macs(node: Fenced, name: str) -> dict[str, str]:
    """The MACs of an attachment: of its bridge, of the host's end of its veth, of its own interface."""
    kinds = {"b": "bridge", "v": "host end"}
    return {
        "its own" if each.get("sandbox") else kinds[each["name"][-1]]: each["mac"]
        for each in node.results[name]["interfaces"]
    }


@pytest.mark.parametrize("whose", ["its own", "host end", "bridge", "a future member's"])
def test_a_mac_that_is_anothers_is_refused(hosting: tuple[Fenced, Make], whose: str) -> None:
    """Whoever shares a MAC on a bridge hears what is for the other, and nothing of it is left."""
    node, make = hosting
    wanted = "0a:58:0a:c8:01:07" if whose == "a future member's" else macs(node, "blue1")[whose]
    known, space = node.ask("attachments"), make()
    code, said = node.call("ADD", "thief", space, runtimeConfig={"mac": wanted}, isolationNetwork="red")
    assert code == UNAVAILABLE, said
    assert wanted in said["msg"]
    assert (space.links(), node.ask("attachments")) == (set(), known)


def test_a_mac_of_ones_own_is_had_once(hosting: tuple[Fenced, Make]) -> None:
    node, make = hosting
    wanted = "06:00:00:00:00:07"
    code, said = node.call("ADD", "first", make(), runtimeConfig={"mac": wanted})
    assert code == 0, said
    assert wanted in [each["mac"] for each in said["interfaces"]]
    assert node.call("ADD", "second", make(), runtimeConfig={"mac": wanted})[0] == UNAVAILABLE
    assert node.call("DEL", "first")[0] == 0
    assert node.call("ADD", "second", make(), runtimeConfig={"mac": wanted})[0] == 0
    assert node.call("DEL", "second")[0] == 0


def test_a_lock_on_the_sockets_directory_keeps_nobody_out(tmp_path: Path) -> None:
    """Anybody may lock a directory he can read, /run for one."""
    tmp_path.chmod(0o755)
    for parent in list(tmp_path.parents)[:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    holder = subprocess.Popen([*NOBODY, "flock", "-x", str(tmp_path), "sh", "-c", "echo held; exec sleep infinity"],
                              stdout=subprocess.PIPE, text=True)  # fmt: skip
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with noded(tmp_path) as (node, _):  # waits until the daemon answers
            assert node.status() == 0
            assert holder.poll() is None
    finally:
        holder.kill()
        holder.wait()
