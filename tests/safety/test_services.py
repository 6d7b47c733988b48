"""With bridge-nf-call 0 a container does not reach a container on its own bridge by a service's virtual address.

`status`, STATUS and `doctor` tell that, and only where a program translates services.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable

from tests.mesh.fleet import Container, Node, run, wait_for

CODE, VIRTUAL = "service-same-bridge", "10.96.0.1"
KUBE_PROXY = """
table ip kube-proxy {{
    chain nat-prerouting {{
        type nat hook prerouting priority -100
        ip daddr {virtual} dnat to {target}
    }}
}}
"""


def at(node: Node, *words: str) -> None:
    run("ip", "netns", "exec", node.name, *words)


def bridged_packets_are_tracked(node: Node, value: int) -> None:
    for family in ("iptables", "ip6tables"):
        at(node, "sysctl", "-qw", f"net.bridge.bridge-nf-call-{family}={value}")


def is_told(node: Node) -> bool:
    return CODE in {each["code"] for each in node.tool("status")["problem_details"]}


def doctor(node: Node) -> list[dict[str, str]]:
    places = ("--run-dir", str(node.directory / "run"), "--data-dir", str(node.directory / "data"))
    document = json.loads(node.cli("doctor", "--json", *places).stdout)
    return [each for each in document["findings"] if each["check"] == "services"]


def status_stderr(node: Node, box: Container) -> str:
    done = node.call("STATUS", box)
    assert done.returncode == 0
    return done.stderr


def connects(one: Container, two: Container, wait: float) -> bool:
    """Whether one reaches a listener of the other by the virtual address."""
    with two.socket(socket.SOCK_STREAM) as ear, one.socket(socket.SOCK_STREAM) as mouth:
        ear.bind((two.address, 0))
        ear.listen()
        mouth.settimeout(wait)
        with contextlib.suppress(TimeoutError):
            mouth.connect((VIRTUAL, ear.getsockname()[1]))
            return True
    return False


def look(node: Node) -> None:
    """Another program's new base chain has the daemon look at the host's firewalls."""
    at(
        node,
        "nft",
        "add table inet zlt; add chain inet zlt c { type filter hook input priority 0; }; delete table inet zlt",
    )


def test_a_service_on_the_same_bridge(frozen: Callable[..., Node]) -> None:
    node = frozen(1)
    one, two = node.container("web"), node.container("web")
    bridged_packets_are_tracked(node, 0)
    look(node)
    assert one.pings(two.address)
    assert not is_told(node)
    assert doctor(node) == []
    at(node, "nft", KUBE_PROXY.format(virtual=VIRTUAL, target=two.address))
    wait_for(lambda: is_told(node), "the problem", 15)
    assert not connects(one, two, 0.5)
    assert "own bridge by a service's virtual address" in status_stderr(node, one)
    assert [(each["level"], "bridge-nf-call-iptables=1" in each["fix"]) for each in doctor(node)] == [("warn", True)]
    bridged_packets_are_tracked(node, 1)
    look(node)
    wait_for(lambda: not is_told(node), "its end", 15)
    assert connects(one, two, 5)
    assert "service" not in status_stderr(node, one)
    at(node, "nft", "delete", "table", "ip", "kube-proxy")
    bridged_packets_are_tracked(node, 0)
    assert doctor(node) == []
    at(node, "iptables-legacy", "-t", "nat", "-N", "KUBE-SERVICES")
    assert len(doctor(node)) == 1
