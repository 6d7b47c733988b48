"""Runs the cells of a test: asks `why`, sends the packets, compares, and names the cause of a difference."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_network

from cni import answers, plugin_protocol
from cni.cli import ask
from cni.cli.connectivity import causes, checks, far, probes
from cni.cli.connectivity.accept import respond
from cni.cli.connectivity.boxes import SCARCE, Box, Boxes, Place
from cni.cli.connectivity.causes import CAUSES, Readings
from cni.cli.connectivity.checks import End, Pair
from cni.cli.connectivity.outcomes import ALLOWED, Outcome, send, symptom
from cni.cli.connectivity.readings import Reader
from cni.cli.plugin_call import CallFailed
from cni.host import findings
from cni.host.short_thread import inside

OVERHEAD = 80  # bytes that WireGuard adds at most: IPv6, UDP, its header and tag
WHOLE = 60.0  # seconds of a whole test
KNOWN = 8.0  # seconds until what a node publishes has arrived at another, with room


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
        run_dir = options.run_dir
        status = ask.ask(run_dir, "status", answers.Status)
        graph = ask.ask(run_dir, "graph", answers.Graph)
        self.node = _Node(status, tuple(graph.node.addresses), graph.peers)
        self.reader = Reader(run_dir, self.node.addresses, deadline)

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
        self._host_port(scratch)
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

    def _pair(self, pair: Pair) -> Outcome:
        """The prediction, and what happened to packets of each kind."""
        began = time.monotonic()
        path, warnings = self._why(pair)
        should = pair.should
        if should is None:
            should = path is not None and path.allowed and path.certain
        outcome = Outcome(pair, should, path, warnings, began)
        box = self.boxes.get(pair.source)
        for kind in pair.kinds:
            if time.monotonic() > self.deadline:
                outcome.results[kind] = None, "out of time"
                continue
            at = time.monotonic()
            sending = partial(send, kind, pair, should)
            outcome.results[kind] = inside(box.fd, sending) if box is not None else sending()
            outcome.seconds[kind] = time.monotonic() - at
            if kind == checks.TCP and not outcome.results[kind][0]:
                break  # the larger ones would only take their time
        return outcome

    def _until_known(self, pairs: list[Pair]) -> None:
        """Wait until this node has heard from the cluster's store of the other node's namespaces, which were attached a
        moment ago. Without a cluster nothing tells of them, and the prediction is uncertain."""
        end = min(time.monotonic() + KNOWN, self.deadline)
        while time.monotonic() < end:
            paths = [self._why(pair)[0] for pair in pairs]
            if all(path is None or path.allowed or not path.certain for path in paths):
                return
            time.sleep(0.2)

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

    def _judge(self, outcome: Outcome, routed_arrives: bool) -> None:
        pair, path = outcome.pair, outcome.path
        read: Readings | None = None
        for kind, (got, text) in outcome.results.items():
            predicted = None if path is None or (path.allowed and not path.certain) else path.allowed
            code = None
            if got is not None and (got != outcome.should or (predicted is not None and predicted != got)):
                read = read or self.reader.read(outcome, self.boxes.get(pair.source))
                code = causes.cause(symptom(outcome, kind, routed_arrives), read)
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

    def _host_port(self, scratch: Boxes) -> None:
        """From another service's container to a port of the node that leads to a container. For IPv4 alone: portmap
        translates IPv6 only for what comes from outside the node."""
        began, box = time.monotonic(), self.boxes["beside"]
        if not findings.has_host_ports():
            text = "no host port has been in use on this node, and portmap would leave its chains here"
            self._note("host port", "other", "beside", began=began, got=None, text=text)
            return
        address = next((each for each in self.node.addresses if ":" not in each), "")
        number = findings.free_port()
        pair = Pair(
            name="host port",
            source="other",
            destination="beside",
            address=address,
            should=True,
            kinds=(checks.TCP,),
            port=number,
        )
        try:
            with scratch.published(box, number):
                self._all([pair])
        except (CallFailed, OSError) as error:
            self._note("host port", "other", "beside", began=began, got=None, text=str(error))

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
            other = far.open_node(address, self.tag, network, ALLOWED)
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
        pairs = checks.there(ends["flat"], ends["isolated"], name, boxes)
        self._until_known([pair for pair in pairs if pair.should is not False])
        self._all(pairs)
        other.close()


def node_address(peer: answers.Peer) -> str | None:
    """The peer's own address: the first of its first allowed network."""
    for text in peer.allowed_ips:
        network = ip_network(text, strict=False)
        return str(network[0] if network.num_addresses == 1 else network[1])
    return None
