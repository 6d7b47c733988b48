"""What agents and people are told of the paths."""

from __future__ import annotations

import contextlib
import time

from cni.overlay import wire
from tests.mesh.fleet import wait_for

from .lab import Lab
from .test_paths import SERVERS, meet, path_of


def test_agents_and_people_are_told_the_path_that_is_used(lab: Lab) -> None:
    lab.start_stun()
    first, second, _ = meet(lab, "prc", "shift", nat=SERVERS)
    wait_for(lambda: path_of(first, second)["path"] == "hole-punched", "the path")
    key, outside = str(second.status().public_key), f"{lab.public_address(2)}:33331"
    began = time.monotonic()
    assert first.ask(wire.NatTick()) == wire.Ok()
    assert time.monotonic() - began < 0.5
    status = first.ask(wire.NatStatusRequest())
    assert status.peers == (wire.NatPeer(key, "hole-punched", outside),)
    assert wire.Candidate("server-reflexive", f"{lab.public_address(1)}:51420", 50) in status.candidates
    probes = first.tool("ping", key[:12])
    assert [(probe["path"], probe["endpoint"]) for probe in probes] == [("hole-punched", outside)]
    assert 0 < probes[0]["round_trip_ms"] < 500
    done = first.cli("ping", key[:12], "--run-dir", str(first.directory / "run"))
    assert done.returncode == 0, done
    assert f"at {outside} in " in done.stdout
    assert first.cli("ping", "no-such-peer", "--run-dir", str(first.directory / "run")).returncode == 1


def test_an_agent_is_told_when_a_path_begins(lab: Lab) -> None:
    lab.start_stun()
    first = lab.joined("prc", 1, nat=SERVERS)
    with contextlib.closing(first.agent()) as agent:
        agent.ok(wire.NatTick())
        second = lab.joined("shift", 2, nat=SERVERS)
        event = wire.NatEndpointChanged(second.status().public_key, f"{lab.public_address(2)}:33331")

        def told() -> bool:
            agent.ask(wire.StatusRequest())
            return event in agent.events

        wait_for(told, "the event", 20, step=0.3)


def test_a_node_without_nat_traversal_says_so(lab: Lab) -> None:
    node = lab.at("prc", 1)
    lab.wait_for_device(node)
    done = node.cli("ping", "xTIBA5", "--run-dir", str(node.directory / "run"))
    assert done.returncode == 1
    assert "NAT traversal is off on this node" in done.stderr
