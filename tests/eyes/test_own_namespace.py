"""`attach`, `detach` and `plan`, against the real daemon."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernel import toolnode
from tests.kernel.toolnode import Node, Space


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with toolnode.running(tmp_path_factory.mktemp("node"), {}) as made:
        yield made


def attached(node: Node) -> list[Any]:
    return [each for each in node.ask("attachments") if each["network"] == "zlayer-operator"]


def test_an_own_namespace_joins_a_service_and_leaves_it(node: Node) -> None:
    with toolnode.spaces() as make:
        one, two = make(), make()
        code, out = node.tool("attach", one.name, "--service", "web", "--json")
        assert code == 0, out
        address = json.loads(out)["ips"][0]["address"].partition("/")[0]
        code, text = node.tool("attach", two.path, "--service", "web", "--id", "second", "--ifname", "net1")
        assert code == 0 and text.startswith("second/net1 in "), text
        assert [(a["container_id"], a["interface"], a["service"]) for a in attached(node)] == [
            (f"ns-{one.name}", "eth0", "web"),
            ("second", "net1", "web"),
        ]
        ping = ["nsenter", f"--net={two.path}", "ping", "-c", "1", "-W", "3", address]
        assert subprocess.run(ping, capture_output=True, check=False).returncode == 0
        assert node.tool("attach", one.name, "--service", "web")[0] == 1  # it is there already
        assert node.tool("detach", one.name)[0] == 0
        assert one.links() == set()
    assert node.tool("detach", two.path, "--id", "second", "--ifname", "net1")[0] == 0  # its namespace is gone
    assert attached(node) == []
    assert node.tool("detach", "none")[0] == 1
    assert node.tool("attach", "not-there", "--service", "web")[0] == 1


def test_a_process_by_its_pid(node: Node) -> None:
    process = subprocess.Popen(["unshare", "-n", "sleep", "60"])
    try:
        before = Path("/proc/self/ns/net").stat().st_ino
        assert toolnode.until(lambda: Path(f"/proc/{process.pid}/ns/net").stat().st_ino != before, 10)
        code, out = node.tool("attach", str(process.pid), "--service", "web", "--network", "red", "--json")
        assert code == 0, out
        (mine,) = attached(node)
        assert (mine["isolation_network"], mine["container_id"]) == ("red", f"ns-{process.pid}")
        assert node.tool("detach", str(process.pid))[0] == 0
    finally:
        process.kill()
        process.wait()


def test_a_plan_says_what_the_add_then_does(node: Node, tmp_path: Path) -> None:
    plugin = {"type": "zlayer-cni", "service": "${K8S_POD_NAMESPACE}", "mode": "isolated", "runDir": node.run_dir}
    conf = tmp_path / "10-x.conflist"
    conf.write_text(json.dumps({"cniVersion": "1.0.0", "name": "planned", "plugins": [plugin, {"type": "portmap"}]}))
    args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=one"
    before = node.ask("status")["services"]
    code, out = node.tool("plan", str(conf), "--args", args, "--json")
    (plan,) = json.loads(out)
    assert code == 0, out
    assert (plan["network"], plan["service"], plan["isolation_network"]) == ("planned", "shop", "shop")
    assert (plan["bridge"], plan["reaches"], plan["fails"]) == (None, 0, [])
    assert node.ask("status")["services"] == before  # nothing was done
    with toolnode.spaces() as make:
        space: Space = make()
        node.add("planned1", space, "shop", "shop")
        (again,) = json.loads(node.tool("plan", str(conf), "--args", args, "--json")[1])
        assert again["bridge"] == next(a["bridge"] for a in node.ask("attachments") if a["container_id"] == "planned1")
        assert (again["reaches"], again["attachments"]) == (1, 1)
    assert "isolation  shop" in node.tool("plan", str(conf), "--args", args)[1]


def test_a_plan_of_a_wrong_configuration_says_why_it_would_fail(node: Node, tmp_path: Path) -> None:
    conf = tmp_path / "10-x.conf"
    conf.write_text(
        json.dumps({"cniVersion": "1.0.0", "name": "x", "type": "zlayer-cni", "mode": "isolated", "mtu": -1})
    )
    code, out = node.tool("plan", str(conf))
    assert code == 1 and out.startswith("an ADD would fail: code 7: "), out
    conf.write_text("{")
    assert node.tool("plan", str(conf))[0] == 2
    conf.write_text('{"type": "bridge"}')
    assert node.tool("plan", str(conf))[0] == 2
