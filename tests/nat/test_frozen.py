"""The frozen program finds paths as the sources do: it has its own Python modules, libcrypto and libnftables."""

from __future__ import annotations

from tests.mesh.fleet import wait_for

from .lab import Lab
from .test_paths import SERVERS, echoed, path_of
from .test_relay import RELAY


def test_the_frozen_program_relays_and_meets(lab: Lab, program: tuple[str, ...]) -> None:
    lab.start_stun()
    sites = (("public", 3, RELAY), ("sym", 1, SERVERS), ("sym", 2, SERVERS))
    nodes = [lab.joined(kind, number, False, nat=nat) for kind, number, nat in sites]
    for node in nodes:
        node.program = program
        node.start()
    _, first, second = nodes
    wait_for(lambda: echoed(first, second), "the tunnel", 30)
    assert path_of(first, second)["path"] == "relayed"
    assert first.tool("netcheck")["families"][0]["kind"] == "symmetric"
