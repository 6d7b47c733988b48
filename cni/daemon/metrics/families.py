"""The metrics: their names, labels and values, from one reading of the node. Pure.

Imported by the first scrape: it imports prometheus-client, which takes some 60 ms and 4 MB. docs/metrics.md has a row
for each entry of METRICS, and a test compares the two. No label has an endpoint, an address, a container or a pod:
each of those makes new series for as long as the daemon runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from cni import answers
from cni.daemon.call_times import BOUNDS
from cni.daemon.metrics.reading import Reading

MOST = 500  # values of a label; the rest is `other`
OTHER = "other"
PREFIX = "zlayer_cni_"
Sample = tuple[Sequence[str], float]


@dataclass(frozen=True, slots=True)
class MetricKind:
    """One metric: its name without PREFIX (a counter's without `_total`), "counter" or "gauge", its labels, and what it
    means. `samples`: its values in a reading."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str
    samples: Callable[[Reading], Iterable[Sample]]


def _one(value: float | None) -> list[Sample]:
    return [] if value is None else [((), float(value))]


def _bounded(counts: Mapping[str, float]) -> Iterator[Sample]:
    """The MOST largest values by their label, and the sum of the others as OTHER."""
    largest = sorted(counts, key=lambda label: (-counts[label], label))
    yield from (((label,), counts[label]) for label in largest[:MOST])
    if rest := largest[MOST:]:
        yield (OTHER,), sum(counts[label] for label in rest)


def _addresses(reading: Reading) -> Iterator[Sample]:
    largest = sorted({each.service: each.used for each in reading.usages}.items(), key=lambda item: (-item[1], item[0]))
    named = {service for service, _ in largest[:MOST]}
    sums: dict[tuple[str, str, str], float] = {}
    for each in reading.usages:
        service = each.service if each.service in named else OTHER
        for state, count in (("used", each.used), ("cooling", each.cooling), ("free", each.free)):
            key = service, str(each.version), state
            sums[key] = sums.get(key, 0.0) + count
    yield from sums.items()


def _drops(reading: Reading, which: int) -> Iterator[Sample]:
    by_network: dict[str, float] = {}
    for (network, _), counts in reading.drops.items():
        by_network[network] = by_network.get(network, 0.0) + counts[0]
    named = set(sorted(by_network, key=lambda network: (-by_network[network], network))[:MOST])
    sums: dict[tuple[str, str], float] = {}
    for (network, rule), counts in reading.drops.items():
        key = network if network in named else OTHER, rule
        sums[key] = sums.get(key, 0.0) + counts[which]
    yield from sums.items()


def _peers(reading: Reading) -> list[tuple[str, answers.Peer]]:
    """The peers by a label: the name and, where two peers share it or it has none, the first ten characters of the key;
    at most MOST, those with the most traffic."""
    by_traffic = sorted(reading.peers, key=lambda peer: -(peer.rx_bytes + peer.tx_bytes))[:MOST]
    names = [peer.name for peer in by_traffic]
    found: dict[str, answers.Peer] = {}
    for peer in by_traffic:
        is_name = peer.name and names.count(peer.name) == 1
        label = peer.name if is_name else f"{peer.name} {peer.public_key[:10]}".strip()
        found.setdefault(label, peer)
    return list(found.items())


def _bytes(reading: Reading) -> Iterator[Sample]:
    for label, peer in _peers(reading):
        yield (label, "received"), peer.rx_bytes
        yield (label, "sent"), peer.tx_bytes


def _path(peer: answers.Peer) -> str:
    if not peer.alive:
        return "none"
    return "direct" if peer.direct else "learned"


def _problems(reading: Reading) -> Iterator[Sample]:
    found = {(problem.code, problem.kind().severity) for problem in reading.problems}
    yield from ((key, 1.0) for key in sorted(found))


METRICS = (
    MetricKind("info", "gauge", ("version",), "1; the version of the daemon.", lambda r: [((r.version,), 1.0)]),
    MetricKind(
        "calls_by_form",
        "counter",
        ("form",),
        "Calls of plugins, by what sent them: the launcher, or Python.",
        lambda r: [((form,), float(count)) for form, count in r.callers.items()],
    ),
    MetricKind(
        "attachments",
        "gauge",
        ("service",),
        "Attachments of containers.",
        lambda r: _bounded({service: float(count) for service, count in r.attachments.items()}),
    ),
    MetricKind(
        "attachments_unfinished",
        "gauge",
        (),
        "Attachments that are being set up or removed, or that a killed call has left.",
        lambda r: _one(r.unfinished),
    ),
    MetricKind(
        "addresses",
        "gauge",
        ("service", "family", "state"),
        "Addresses of a service's subnets on this node. State: used, cooling (released, not given out yet) or free.",
        _addresses,
    ),
    MetricKind(
        "subnets_free",
        "gauge",
        ("family",),
        "Subnets of the overlay's range that this node could still give to a service.",
        lambda r: [((str(version),), float(count)) for version, count in r.spare_slots.items()],
    ),
    MetricKind("delete_queue", "gauge", (), "Deletions that wait to be carried out.", lambda r: _one(r.queued)),
    MetricKind(
        "gc_freed",
        "counter",
        (),
        "Attachments that the daemon's garbage collection released.",
        lambda r: _one(r.counts["collected"]),
    ),
    MetricKind(
        "reconcile",
        "counter",
        ("result",),
        "Comparisons with the kernel. Result: complete, or incomplete if a step failed.",
        lambda r: [
            (("complete",), float(r.counts["reconciled"])),
            (("incomplete",), float(r.counts["reconcile-incomplete"])),
        ],
    ),
    MetricKind(
        "fence_in_force", "gauge", (), "1 if the fence's tables are loaded, else 0.", lambda r: _one(r.fence_in_force)
    ),
    MetricKind(
        "fence_mended",
        "counter",
        (),
        "Repairs of the fence's tables after another program had changed them.",
        lambda r: _one(r.fence_repairs),
    ),
    MetricKind(
        "fence_drops",
        "counter",
        ("network", "rule"),
        'Packets that a rule of the fence dropped, by nftables\' counters. Network: "" for the flat mesh, "-" for a'
        " rule of no network. It begins at 0 again when the rule is loaded again.",
        lambda r: _drops(r, 0),
    ),
    MetricKind("fence_drop_bytes", "counter", ("network", "rule"), "Bytes of those packets.", lambda r: _drops(r, 1)),
    MetricKind("peers", "gauge", (), "Peers of WireGuard.", lambda r: _one(len(r.peers))),
    MetricKind(
        "peers_alive",
        "gauge",
        (),
        "Peers whose last handshake is younger than a session can be (180 s).",
        lambda r: _one(sum(peer.alive for peer in r.peers)),
    ),
    MetricKind(
        "peer_handshake_timestamp_seconds",
        "gauge",
        ("peer",),
        "When the last handshake with the peer was, in Unix seconds; 0 for never.",
        lambda r: [((label,), float(peer.last_handshake_unix or 0)) for label, peer in _peers(r)],
    ),
    MetricKind("peer_bytes", "counter", ("peer", "direction"), "Bytes received from and sent to the peer.", _bytes),
    MetricKind(
        "peer_path",
        "gauge",
        ("peer", "path"),
        "1; the path to the peer: direct (a configured endpoint), learned (the peer called from another), or none.",
        lambda r: [((label, _path(peer)), 1.0) for label, peer in _peers(r)],
    ),
    MetricKind(
        "peer_path_mtu_bytes",
        "gauge",
        ("peer",),
        "The largest packet that the path to the peer carries, as far as it is known.",
        lambda r: [((label,), float(peer.path_mtu)) for label, peer in _peers(r) if peer.path_mtu is not None],
    ),
    MetricKind(
        "path_changes",
        "counter",
        ("change",),
        "Changes of peers. Change: endpoint, health (answers or not), or size (the path's MTU).",
        lambda r: [
            (("endpoint",), float(r.counts["peer-endpoint"])),
            (("health",), float(r.counts["peer-health"])),
            (("size",), float(r.counts["path-sizes"])),
        ],
    ),
    MetricKind(
        "store_up", "gauge", (), "1 if etcd answers, else 0; without a cluster not there.", lambda r: _one(r.store_up)
    ),
    MetricKind(
        "problem",
        "gauge",
        ("code", "severity"),
        "1 for each problem that exists now, as `zlayer-cni status` tells (docs/problems.md has the codes).",
        _problems,
    ),
    MetricKind(
        "problems_begun",
        "counter",
        (),
        "Problems that began, and texts that changed.",
        lambda r: _one(r.counts["problems"]),
    ),
    MetricKind(
        "scrape_seconds", "gauge", (), "What it took to read the node for this scrape.", lambda r: _one(r.seconds)
    ),
    MetricKind(
        "scrape_failed",
        "gauge",
        ("part",),
        "1 for each part of this scrape that could not be read; the log has the reason.",
        lambda r: [((part,), 1.0) for part in r.failed],
    ),
)
"""The metrics but for the histogram of calls, and those of the process, which have names that dashboards know."""

PROCESS = (
    MetricKind(
        "process_cpu_seconds",
        "counter",
        (),
        "Processor time of the daemon.",
        lambda r: _one(None if r.process is None else r.process.cpu),
    ),
    MetricKind(
        "process_resident_memory_bytes",
        "gauge",
        (),
        "Memory of the daemon.",
        lambda r: _one(None if r.process is None else r.process.memory),
    ),
    MetricKind(
        "process_open_fds",
        "gauge",
        (),
        "Open descriptors of the daemon.",
        lambda r: _one(None if r.process is None else r.process.descriptors),
    ),
    MetricKind(
        "process_start_time_seconds",
        "gauge",
        (),
        "When the daemon started, in Unix seconds.",
        lambda r: _one(None if r.process is None else r.process.started),
    ),
)
CALLS = "call_seconds"
CALLS_TEXT = "How long calls of plugins took in the daemon. Code: 0, or the error's (docs/errors.md)."


class NodeCollector(Collector):
    """A reading, as prometheus-client takes it."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def collect(self) -> Iterator[Metric]:
        """Every metric that has a value."""
        yield _calls(self._reading)
        for kinds, prefix in ((METRICS, PREFIX), (PROCESS, "")):
            for kind in kinds:
                made = CounterMetricFamily if kind.kind == "counter" else GaugeMetricFamily
                family = made(prefix + kind.name, kind.text, labels=kind.labels)
                for labels, value in kind.samples(self._reading):
                    family.add_metric(labels, value)
                yield family


def _calls(reading: Reading) -> Metric:
    family = HistogramMetricFamily(PREFIX + CALLS, CALLS_TEXT, labels=("verb", "code"))
    bounds = [*map(str, BOUNDS), "+Inf"]
    for key, times in sorted(reading.calls.items()):
        buckets = list(zip(bounds, map(float, accumulate(times.counts)), strict=True))
        family.add_metric(key, buckets, times.total)
    return family


def render(reading: Reading, accept: str) -> tuple[str, bytes]:
    """The content type and the body of a scrape. `accept`: the client's header, by which the form is chosen."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry(auto_describe=False)
    registry.register(NodeCollector(reading))
    encode, content_type = choose_encoder(accept)
    return content_type, encode(registry)
