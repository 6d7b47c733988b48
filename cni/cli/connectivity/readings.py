"""Reads the node after a check failed: what its routes, filters, peers and tables say."""

from __future__ import annotations

import time
from ipaddress import ip_address, ip_network

from cni import answers, defaults
from cni.cli import ask
from cni.cli.connectivity.boxes import Box
from cni.cli.connectivity.causes import Readings
from cni.cli.connectivity.checks import Pair
from cni.cli.connectivity.outcomes import Outcome
from cni.host import findings

TABLE = "zlayer_cni"
_HANDSHAKE = defaults.KEEPALIVE + 2.0  # seconds in which a peer's device calls: it has nothing else to send
_LOOKS = 20  # at a table that a program may switch off and on


class Reader:
    """The reader of one test."""

    def __init__(self, run_dir: str, addresses: tuple[str, ...], deadline: float) -> None:
        """`addresses`: the node's own. `deadline`: of the whole test, by the monotonic clock."""
        self._run_dir, self._addresses, self._deadline = run_dir, addresses, deadline
        self._dormant: bool | None = None

    def read(self, outcome: Outcome, source: Box | None) -> Readings:
        """Read the node after a packet of `outcome` met another fate than it should. `source`: the pair's source, None
        for the node. Raises NoDaemon, Refused, OSError."""
        pair = outcome.pair
        device, own = findings.way_to(pair.address)
        status = ask.ask(self._run_dir, "status", answers.Status)
        peers = ask.ask(self._run_dir, "peers", list[answers.Peer])
        peer = next((each for each in peers if pair.far and _has(each, pair.address)), None)
        silent = peer is not None and not peer.alive
        endpoint = (peer.endpoint or next(iter(peer.configured_endpoints), "")) if peer is not None else ""
        wait = min(_HANDSHAKE, self._deadline - time.monotonic() + 5)
        heard = silent and bool(endpoint) and findings.hears(endpoint, status.wireguard.port or 0, max(wait, 1))
        denied = any(problem.code.startswith("forward-denied") for problem in status.problem_details or ())
        return Readings(
            own=own and pair.address not in self._addresses,
            device=device,
            tunnels=frozenset({status.wireguard.interface or "", *(each.device for each in peers)} - {""}),
            behind=not pair.far or peer is not None,
            silent=silent,
            heard=heard,
            reverse=self._reverse(pair, source),
            filters_bridged=findings.filters_bridged(),
            denied=denied or any(warning.endswith("it may drop this too") for warning in outcome.warnings),
            dormant=self._is_dormant(),
        )

    def _reverse(self, pair: Pair, source: Box | None) -> tuple[str, ...]:
        """The bridge of the pair's source, if its reverse path filter refuses the source."""
        if source is None or ":" in pair.address:
            return ()
        attached = ask.ask(self._run_dir, "attachments", list[answers.Attachment])
        bridges = {each.bridge for each in attached if each.service == source.service}
        return tuple(
            bridge
            for bridge in sorted(bridges)
            if findings.strict_reverse_path(bridge) and findings.way_to(source.addresses[0])[0] != bridge
        )

    def _is_dormant(self) -> bool:
        """Looked for once: a program may switch the tables off and the daemon on again, many times a second."""
        if self._dormant is None:
            self._dormant = self._look_for_dormant()
        return self._dormant

    def _look_for_dormant(self) -> bool:
        for _ in range(_LOOKS):
            if findings.is_dormant(TABLE):
                return True
            time.sleep(0.03)
        return not ask.ask(self._run_dir, "status", answers.Status).fence.in_force


def _has(peer: answers.Peer, address: str) -> bool:
    return any(ip_address(address) in ip_network(text, strict=False) for text in peer.allowed_ips)
