"""Runs the cells of a test: asks `why`, sends the packets, compares, and names the cause of a difference."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address, ip_network

from cni import answers, plugin_protocol
from cni.cli import ask
from cni.cli.connectivity import causes, checks, far, probes
from cni.cli.connectivity.accept import respond
from cni.cli.connectivity.boxes import Box, Boxes, Place
from cni.cli.connectivity.causes import CAUSES, Readings, Symptom
from cni.cli.connectivity.checks import End, Pair
from cni.cli.plugin_call import CallFailed
from cni.host import findings
from cni.host.short_thread import inside

TABLE = "zlayer_cni"
SCARCE = "addresses-low"  # the problem with which no namespace is attached
OVERHEAD = 80  # bytes that WireGuard adds at most: IPv6, UDP, its header and tag
WHOLE = 60.0  # seconds of a whole test
_ALLOWED, _FORBIDDEN = 6.0, 1.2  # seconds until a packet that should arrive has failed to; that should not, has not
_HANDSHAKE = 12.0  # seconds in which a peer's device calls again (REKEY_TIMEOUT is 5)
_LOOKS = 20  # at a table that a program may switch off and on


@dataclass
class _Node:
    """What the daemon says of the node."""

    status: answers.Status
    addresses: tuple[str, ...]
    peers: list[answers.Peer]


@dataclass(kw_only=True)
class Options:
    """`outside`: the address to ask outside the overlay; `nodes`: the other nodes, by name, all if empty."""

    run_dir: str
    outside: str = ""
    nodes: tuple[str, ...] = ()
    tell: Callable[[str], None] = field(default=lambda _: None)


def run(options: Options) -> answers.Connectivity:
    """The whole test; every namespace is gone afterwards. Raises NoDaemon, Refused, OSError."""
    began = time.monotonic()
    test = _Test(options, began + WHOLE)
    with ExitStack() as after:
        test.run(after)
    cells = test.cells
    codes = sorted({cell.code for cell in cells if cell.code is not None})
    return answers.Connectivity(
        ok=all(cell.ok for cell in cells if cell.got is not None),
        version=test.node.status.version,
        node=f"{test.node.status.node.deployment}/{test.node.status.node.instance_id}",
        cells=cells,
        codes=codes,
        seconds=round(time.monotonic() - began, 3),
    )


class _Test:
    def __init__(self, options: Options, deadline: float) -> None:
        self.options, self.deadline = options, deadline
        self.cells: list[answers.Cell] = []
        self.boxes: dict[str, Box] = {}
        self.tag = secrets.token_hex(3)
        self._dormant: bool | None = None
        run_dir = options.run_dir
        status = ask.ask(run_dir, "status", answers.Status)
        graph = ask.ask(run_dir, "graph", answers.Graph)
        self.node = _Node(status, tuple(graph.node.addresses), graph.peers)

    def run(self, after: ExitStack) -> None:
        """Fill `cells`. While addresses are scarce nothing is attached: the test would take them from containers."""
        scarce = [p.text for p in self.node.status.problem_details or () if p.code == SCARCE]
        if scarce:
            self._note("attach", "flat", "-", began=time.monotonic(), got=False, code="pool-full", text=scarce[0])
            return
        place = Place(self.options.run_dir, self.node.status.data_dir)
        scratch = Boxes(place, self.tag)
        after.callback(scratch.close)
        network = f"connectivity-{self.tag}"
        for name, service, isolation in (
            ("flat", "ct-a", None),
            ("beside", "ct-a", None),
            ("other", "ct-b", None),
            ("isolated", "ct-a", network),
        ):
            self.options.tell(f"attaching {name}")
            if not self._attach(scratch, name, service, isolation):
                return
            after.callback(respond(self.boxes[name]).close)
        ends = {name: End(name, box.addresses, box.mtu) for name, box in self.boxes.items()}
        pairs = checks.here(ends["flat"], ends["beside"], ends["other"], ends["isolated"], self.node.addresses)
        self._all(pairs)
        self._outside()
        self._names()
        self._other_nodes(after, ends, network)

    def _attach(self, scratch: Boxes, name: str, service: str, network: str | None) -> bool:
        began = time.monotonic()
        try:
            self.boxes[name] = scratch.add(name, service, network)
        except CallFailed as error:
            self._note("attach", name, "-", began=began, got=False, code=causes.of_attach(error.code), text=str(error))
            return False
        self._note("attach", name, "-", began=began, got=True, text=", ".join(self.boxes[name].addresses))
        return True

    def _note(
        self,
        kind: str,
        source: str,
        destination: str,
        *,
        began: float,
        got: bool | None,
        text: str,
        code: str | None = None,
        address: str | None = None,
        expected: bool = True,
        predicted: bool | None = None,
        rule: str | None = None,
    ) -> None:
        cell = answers.Cell(
            kind=kind,
            source=source,
            destination=destination,
            address=address,
            expected=expected,
            predicted=predicted,
            rule=rule,
            got=got,
            ok=code is None,
            code=code,
            text=text,
            remedy=CAUSES[code][1] if code else "",
            seconds=round(time.monotonic() - began, 3),
        )
        self.cells.append(cell)
        self.options.tell(f"{kind}: {source} -> {destination} {address or ''}: {text}")

    # --- cells ---------------------------------------------------------------------------------------------------

    def _all(self, pairs: list[Pair]) -> None:
        """Run the pairs side by side, and note them in their order."""
        with ThreadPoolExecutor(8) as pool:
            outcomes = list(pool.map(self._pair, pairs))
        fine = {outcome.pair.name for outcome in outcomes if outcome.fine}
        for outcome in outcomes:
            self._judge(outcome, routed_arrives="other service" in fine)

    def _pair(self, pair: Pair) -> _Outcome:
        """The prediction, and what happened to packets of each kind."""
        began = time.monotonic()
        path, warnings = self._why(pair)
        should = pair.should
        if should is None:
            should = path is not None and path.allowed and path.certain
        outcome = _Outcome(pair, should, path, warnings, began)
        box = self.boxes.get(pair.source)
        for kind in pair.kinds:
            if time.monotonic() > self.deadline:
                outcome.results[kind] = None, "out of time"
                continue
            at = time.monotonic()
            send = partial(_send, kind, pair, should)
            outcome.results[kind] = inside(box.fd, send) if box is not None else send()
            outcome.seconds[kind] = time.monotonic() - at
            if kind == checks.TCP and not outcome.results[kind][0]:
                break  # the larger ones would only take their time
        return outcome

    def _why(self, pair: Pair) -> tuple[answers.Path | None, list[str]]:
        source = self.boxes.get(pair.source)
        family = 6 if ":" in pair.address else 4
        own = [each for each in source.addresses if (":" in each) == (family == 6)] if source else ["node"]
        keys = {plugin_protocol.SRC: own[0], plugin_protocol.DST: pair.address}
        keys[plugin_protocol.PORT] = f"{pair.port or probes.PORT}"
        try:
            said = ask.ask(self.options.run_dir, "why", answers.Reachability, keys)
        except ask.Refused:
            return None, []
        return next((path for path in said.paths if path.family == family), None), said.warnings

    def _judge(self, outcome: _Outcome, routed_arrives: bool) -> None:
        pair, path = outcome.pair, outcome.path
        readings: Readings | None = None
        for kind, (got, text) in outcome.results.items():
            predicted = None if path is None or (path.allowed and not path.certain) else path.allowed
            code = None
            if got is not None and (got != outcome.should or (predicted is not None and predicted != got)):
                readings = readings or self._read(outcome)
                code = causes.cause(_symptom(outcome, kind, routed_arrives), readings)
            self._note(
                f"{pair.name}, {kind}",
                pair.source,
                pair.destination,
                began=time.monotonic() - outcome.seconds.get(kind, 0.0),
                got=got,
                code=code,
                address=pair.address,
                expected=outcome.should,
                predicted=predicted,
                rule=path.rule.name if path is not None and path.rule is not None else None,
                text=text + (f" ({path.reason})" if code and path is not None and not path.allowed else ""),
            )

    # --- readings ------------------------------------------------------------------------------------------------

    def _read(self, outcome: _Outcome) -> Readings:
        pair = outcome.pair
        device, own = findings.way_to(pair.address)
        status = ask.ask(self.options.run_dir, "status", answers.Status)
        peers = ask.ask(self.options.run_dir, "peers", list[answers.Peer])
        peer = next((each for each in peers if pair.far and _has(each, pair.address)), None)
        silent = peer is not None and not peer.alive
        endpoint = (peer.endpoint or next(iter(peer.configured_endpoints), "")) if peer is not None else ""
        wait = min(_HANDSHAKE, self.deadline - time.monotonic() + 5)
        heard = silent and bool(endpoint) and findings.hears(endpoint, status.wireguard.port or 0, max(wait, 1))
        denied = any(problem.code.startswith("forward-denied") for problem in status.problem_details or ())
        return Readings(
            own=own and pair.address not in self.node.addresses,
            device=device,
            tunnels=frozenset({status.wireguard.interface or "", *(each.device for each in peers)} - {""}),
            behind=not pair.far or peer is not None,
            silent=silent,
            heard=heard,
            reverse=self._reverse(pair),
            filters_bridged=findings.filters_bridged(),
            denied=denied or any(warning.endswith("it may drop this too") for warning in outcome.warnings),
            dormant=self._is_dormant(),
        )

    def _reverse(self, pair: Pair) -> tuple[str, ...]:
        """The bridge of the pair's source, if its reverse path filter refuses the source."""
        source = self.boxes.get(pair.source)
        if source is None or ":" in pair.address:
            return ()
        attached = ask.ask(self.options.run_dir, "attachments", list[answers.Attachment])
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
        return not ask.ask(self.options.run_dir, "status", answers.Status).fence.in_force

    # --- beyond this node ----------------------------------------------------------------------------------------

    def _outside(self) -> None:
        address = self.options.outside or findings.first_default_gateway()
        if not address:
            text = "no default route with a gateway: name an address with --outside"
            self._note("outside", "flat", "outside", began=time.monotonic(), got=None, text=text)
            return
        self._all(
            [
                Pair(
                    name="outside",
                    source="flat",
                    destination="outside",
                    address=address,
                    should=True,
                    kinds=(checks.ECHO,),
                )
            ]
        )

    def _names(self) -> None:
        box = self.boxes["flat"]
        pairs = [
            Pair(
                name="names",
                source="flat",
                destination="resolver",
                address=server,
                should=True,
                kinds=(checks.QUESTION,),
                port=53,
                question=f"{box.service}.{box.zone}".strip("."),
            )
            for server in box.servers
        ]
        self._all(pairs)
        if not pairs:
            text = "no names are served to containers"
            self._note("names", "flat", "resolver", began=time.monotonic(), got=None, text=text)

    def _other_nodes(self, after: ExitStack, ends: dict[str, End], network: str) -> None:
        for peer in self.node.peers:
            name = peer.name or peer.public_key
            chosen = not self.options.nodes or name in self.options.nodes
            if chosen and peer.service is None and time.monotonic() < self.deadline:
                self._other_node(after, ends, network, peer)

    def _other_node(self, after: ExitStack, ends: dict[str, End], network: str, peer: answers.Peer) -> None:
        name, address = peer.name or peer.public_key, node_address(peer)
        if address is None:
            return
        pair = Pair(
            name="node to node",
            source="node",
            destination=name,
            address=address,
            should=True,
            kinds=(checks.ANSWER,),
            far=name,
            port=far.CONTROL,
        )
        self._all([pair])
        if not self.cells[-1].got:
            return
        began = time.monotonic()
        try:
            other = far.open_node(address, self.tag, network, _ALLOWED)
        except (far.Refused, OSError) as error:
            text = "it takes no part (`zlayer-cni connectivity accept` there)"
            text = text if isinstance(error, ConnectionRefusedError) else f"it takes no part: {error}"
            self._note("other node", "flat", name, began=began, got=None, text=text)
            return
        after.callback(other.close)
        agree = abs(other.skew) <= causes.CLOCK_SKEW
        text = f"{abs(other.skew):.1f} s apart"
        self._note("clocks", "node", name, began=began, got=agree, code=None if agree else "clock", text=text)
        most = peer.path_mtu - OVERHEAD if peer.path_mtu and peer.path_mtu_measured else 1 << 16
        boxes = {box.name: End(box.name, box.addresses, min(box.mtu, most)) for box in other.boxes}
        self._all(checks.there(ends["flat"], ends["isolated"], name, boxes))
        other.close()


@dataclass
class _Outcome:
    """A pair, the prediction, and for each kind whether the packets arrived (None: not sent) and how that is said."""

    pair: Pair
    should: bool
    path: answers.Path | None
    warnings: list[str]
    began: float
    results: dict[str, tuple[bool | None, str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def fine(self) -> bool:
        """Whether the first kind did as it should."""
        return next(iter(self.results.values()), (None, ""))[0] == self.should


def _symptom(outcome: _Outcome, kind: str, routed_arrives: bool) -> Symptom:
    pair, results = outcome.pair, outcome.results
    return Symptom(
        kind="mtu" if kind == checks.SIZES else pair.name,
        should=outcome.should,
        far=bool(pair.far),
        bridged=pair.bridged,
        only_bridged=routed_arrives,
        small_arrives=kind != checks.TCP and bool(results.get(checks.TCP, (False, ""))[0]),
        narrow=results.get(checks.SIZES, (True, ""))[0] is False,
    )


def _send(kind: str, pair: Pair, should: bool) -> tuple[bool | None, str]:
    """Send packets of a kind; runs in the source's namespace."""
    patience = _ALLOWED if should else _FORBIDDEN
    if kind == checks.SIZES:
        back, refused = probes.sizes(pair.address, pair.mtu, patience)
        missing = sorted(set(range(probes.SMALLEST, pair.mtu + 1)) - back)
        if missing:
            return False, f"{len(missing)} sizes from {missing[0]} to {missing[-1]} bytes do not arrive"
        if not refused:
            return False, f"{pair.mtu + 1} bytes are sent although the MTU is {pair.mtu}"
        return True, f"{probes.SMALLEST} to {pair.mtu} bytes arrive, one more is refused"
    if kind == checks.ECHO:
        arrives = probes.echo(pair.address, patience)
    elif kind == checks.QUESTION:
        arrives = probes.resolves(pair.address, pair.question, patience / 2)
    elif kind == checks.ANSWER:
        arrives = probes.answered(pair.address, pair.port or probes.PORT, patience)
    elif kind == checks.LARGE:
        arrives = probes.udp(pair.address, probes.LARGE, patience)
    else:
        size = probes.BULK if kind == checks.BULK else probes.TOKEN
        arrives = probes.tcp(pair.address, size, patience)
    return arrives, "arrives" if arrives else "does not arrive"


def _has(peer: answers.Peer, address: str) -> bool:
    return any(ip_address(address) in ip_network(text, strict=False) for text in peer.allowed_ips)


def node_address(peer: answers.Peer) -> str | None:
    """The peer's own address: the first of its first allowed network."""
    for text in peer.allowed_ips:
        network = ip_network(text, strict=False)
        return str(network[0] if network.num_addresses == 1 else network[1])
    return None
