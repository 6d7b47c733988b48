"""`netcheck` names each kind of NAT, from WireGuard's own port, while the engine holds it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from tests.mesh.fleet import PORT

from .lab import ADDRESS, KINDS, SECOND, STUN, Lab

SERVERS = [f"{ADDRESS}:{STUN[0]}", f"{SECOND}:{STUN[0]}"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_named(lab: Lab, kind: str, measured: Callable[[str], None]) -> None:
    expected = KINDS[kind]
    lab.start_stun()
    node = lab.at(kind, 1, nat={"stun": SERVERS})
    lab.wait_for_device(node)
    found = node.tool("netcheck")
    (family,) = found["families"]
    measured(f"netcheck {kind:9} {family['kind'] or '-':24} mapping {family['mapping']}, {family['filtering']}")
    assert found["udp"] is (kind != "blocked")
    assert found["port"] == PORT
    assert family["addresses"] == [node.underlay]
    assert (family["kind"], family["mapping"]) == (expected.name, expected.mapping)
    assert family["filtering"] == expected.filtering
    if kind != "blocked":
        assert family["port_kept"] is expected.port_kept
        assert {endpoint.rpartition(":")[0] for endpoint in family["public"]} == {lab.public_address(1)}
        assert family["hairpin"] is (None if kind == "public" else False)
        assert all(server["round_trip_ms"] < 500 for server in found["servers"])


def test_people_read_the_same(lab: Lab) -> None:
    lab.start_stun()
    node = lab.at("shift", 1, nat={"stun": SERVERS})
    lab.wait_for_device(node)
    done = node.cli("netcheck", "--run-dir", str(node.directory / "run"))
    assert done.returncode == 0, done
    assert f"UDP from port {PORT}: gets out\nIPv4: port-restricted cone\n" in done.stdout
    assert f"  seen from: {lab.public_address(1)}:33331\n" in done.stdout
    assert "  port kept: no; hairpin: no\n" in done.stdout


def test_servers_that_are_dead_are_told_and_the_answer_is_in_time(lab: Lab) -> None:
    node = lab.at("prc", 1, nat={"stun": [f"{ADDRESS}:3478", "no-such-name.invalid:3478"]})
    lab.wait_for_device(node)
    found = node.tool("netcheck")
    assert found["udp"] is False
    assert {server["server"]: server["fault"] for server in found["servers"]} == {
        f"{ADDRESS}:3478": "no answer",
        "no-such-name.invalid:3478": "the name cannot be looked up",
    }


def test_no_server_is_asked_that_is_not_configured(lab: Lab) -> None:
    node = lab.at("prc", 1)
    lab.wait_for_device(node)
    found = node.tool("netcheck")
    assert found["udp"] is None
    assert found["servers"] == []
    assert found["notes"] == ["no STUN server is configured, so none was asked (nat.stun)"]


def test_the_devices_firewall_mark_leads_the_requests(lab: Lab) -> None:
    lab.start_stun()
    node = lab.at("prc", 1, nat={"stun": SERVERS})
    lab.wait_for_device(node)
    node.ip("rule", "add", "fwmark", "7", "blackhole")
    assert node.tool("netcheck")["udp"] is True
    node.wg("set", node.device, "fwmark", "7")
    assert node.tool("netcheck")["udp"] is False


def test_coturn_is_understood(lab: Lab) -> None:
    words = ["ip", "netns", "exec", lab.underlay, "turnserver", "-n", "--stun-only", "--no-cli", "--no-tls"]
    words += ["--no-dtls", "-L", ADDRESS, "-L", SECOND, "-p", "3478", "--alt-listening-port", "3479"]
    words += ["--pidfile", str(lab.directory / "turn.pid"), "--log-file", "stdout"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            node = lab.at("shift", 1, nat={"stun": [SERVERS[0]]})
            lab.wait_for_device(node)
            found = node.tool("netcheck")
        finally:
            server.terminate()
    assert found["udp"] is True
    assert found["families"][0]["mapping"] == "endpoint-independent"
    assert found["families"][0]["public"] == [f"{lab.public_address(1)}:33331"]
