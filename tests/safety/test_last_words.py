"""A YAML that does not go with what is on record: told before a running daemon is ended, and where it is looked for."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.mesh.fleet import Node, wait_for

SLICES = {"slice_cidr": "10.200.1.0/26", "service_cidr": None}  # before docs/mesh.md was read


def subnets(node: Node) -> list[str]:
    return [subnet for each in node.tool("status")["services"] for subnet in each["subnets"]]


def beside(subnet: str) -> str:
    """A part of the range that the subnet is not in."""
    return "10.200.128.0/17" if int(subnet.split(".")[2]) < 128 else "10.200.0.0/17"


def overlayd(node: Node, *words: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Another daemon on the node's directories, with other settings, until it ends by itself."""
    config = node.directory / "other.yaml"
    config.write_text(yaml.safe_dump({**node.settings, **settings}))
    places = ("--run-dir", str(node.directory / "run"), "--data-dir", str(node.directory / "data"))
    command = ["ip", "netns", "exec", node.name, *node.program, "overlayd", "--config", str(config), *places]
    return subprocess.run(
        [*command, "--socket", node.socket, *words], capture_output=True, text=True, check=False, timeout=20
    )


def test_the_subnet_of_an_empty_service_does_not_keep_the_daemon_from_starting(frozen: Callable[..., Node]) -> None:
    node = frozen(1, **SLICES)
    node.remove(node.container("web"))
    old = subnets(node)
    node.end()
    node.settings["service_cidr"] = beside(old[0])
    node.start()
    assert node.tool("status")["problem_details"] == []
    made = node.container("web")
    assert made.address.split(".")[:2] == ["10", "200"]
    (service,) = node.tool("status")["services"]
    assert service["subnets"] != old
    assert len([each for each in node.ip("link") if each["ifname"].endswith("-b")]) == 1, "the old bridge is gone"


def test_settings_that_do_not_go_with_the_records_end_no_running_daemon(frozen: Callable[..., Node]) -> None:
    node = frozen(1, **SLICES)
    node.container("web")
    pid = node.tool("status")["pid"]
    other = {"service_cidr": beside(subnets(node)[0])}
    for option in ("--check", "--take-over"):
        done = overlayd(node, option, **other)
        assert done.returncode == 1, done
        assert "10.200." in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert node.tool("status")["pid"] == pid
    assert overlayd(node, "--check").returncode == 0
    assert overlayd(node, "--check", no_such_key=1).returncode == 1
    assert node.tool("status")["pid"] == pid
    words = ("doctor", "--json", "--run-dir", str(node.directory / "run"), "--data-dir", str(node.directory / "data"))
    said = [each for each in json.loads(node.cli(*words).stdout)["findings"] if each["check"] == "daemon"]
    assert any("could not start" in each["text"] for each in said), said
    # What was said is over when a daemon serves.
    node.end()
    node.start()
    assert "could not start" not in node.cli(*words).stdout


def plugin(node: Node, verb: str, autostart: bool) -> dict[str, Any]:
    conf = {"cniVersion": "1.1.0", "name": "zlt-mesh", "type": "zlayer-cni", "autostart": autostart, "service": "web"}
    conf |= {"runDir": str(node.directory / "run"), "dataDir": str(node.directory / "data")}
    env = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_NETNS": node.path, "CNI_IFNAME": "eth0"}
    done = subprocess.run(
        ["ip", "netns", "exec", node.name, *node.program],
        input=json.dumps(conf),
        env={**os.environ, **env, "CNI_PATH": "/opt/cni/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_a_daemon_that_cannot_start_leaves_its_last_words(frozen: Callable[..., Node]) -> None:
    node = frozen(1, start=False)
    data = node.directory / "data"
    data.mkdir()
    (data / "overlayd.yaml").write_text("cluster_cidr: 10.200.0.0/33\n")
    said = plugin(node, "ADD", autostart=True)
    assert said["code"] == 11
    assert "10.200.0.0/33" in said["msg"], said
    said = plugin(node, "ADD", autostart=False)
    assert "10.200.0.0/33" in said["msg"], said
    words = ("doctor", "--json", "--run-dir", str(node.directory / "run"), "--data-dir", str(data))
    found = [each for each in json.loads(node.cli(*words).stdout)["findings"] if each["check"] == "daemon"]
    assert [each["level"] for each in found] == ["fail"]
    assert "10.200.0.0/33" in found[0]["text"]


@pytest.mark.long
def test_a_service_without_users_gives_its_subnet_back(frozen: Callable[..., Node]) -> None:
    node = frozen(1)
    node.remove(node.container("web"))
    stays = node.container("db")
    names = lambda: [each["service"] for each in node.tool("status")["services"]]  # noqa: E731
    assert sorted(names()) == ["db", "web"]
    wait_for(lambda: names() == ["db"], "the subnet to be given back", 90, step=0.5)
    assert len([each for each in node.ip("link") if each["ifname"].endswith("-b")]) == 1
    assert stays.pings(stays.address)
