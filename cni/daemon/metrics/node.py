"""The metrics of the node: attachments, addresses, queues, the fence, problems, and the daemon's process. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from cni.daemon.metrics.kinds import MOST, OTHER, HistogramKind, MetricKind, Sample, bounded, one
from cni.daemon.metrics.reading import Reading


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


def _problems(reading: Reading) -> Iterator[Sample]:
    found = {(problem.code, problem.kind().severity) for problem in reading.problems}
    yield from ((key, 1.0) for key in sorted(found))


DNS_RESULTS = ("answered", "absent", "forwarded", "refused", "malformed", "strangers")
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
        lambda r: bounded({service: float(count) for service, count in r.attachments.items()}),
    ),
    MetricKind(
        "attachments_unfinished",
        "gauge",
        (),
        "Attachments that are being set up or removed, or that a killed call has left.",
        lambda r: one(r.unfinished),
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
    MetricKind("delete_queue", "gauge", (), "Deletions that wait to be carried out.", lambda r: one(r.queued)),
    MetricKind(
        "gc_freed",
        "counter",
        (),
        "Attachments that the daemon's garbage collection released.",
        lambda r: one(r.counts["collected"]),
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
        "fence_in_force", "gauge", (), "1 if the fence's tables are loaded, else 0.", lambda r: one(r.fence_in_force)
    ),
    MetricKind(
        "fence_mended",
        "counter",
        (),
        "Repairs of the fence's tables after another program had changed them.",
        lambda r: one(r.fence_repairs),
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
    MetricKind(
        "dns_queries",
        "counter",
        ("result",),
        "Messages to the node's DNS server. Result: answered, absent (no such name), forwarded (to other servers),"
        " refused, malformed, or strangers (from outside the overlay, without an answer).",
        lambda r: [((result,), float(r.dns[result])) for result in DNS_RESULTS if result in r.dns],
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
        lambda r: one(r.counts["problems"]),
    ),
    MetricKind(
        "scrape_seconds", "gauge", (), "What it took to read the node for this scrape.", lambda r: one(r.seconds)
    ),
    MetricKind(
        "scrape_failed",
        "gauge",
        ("part",),
        "1 for each part of this scrape that could not be read; the log has the reason.",
        lambda r: [((part,), 1.0) for part in r.failed],
    ),
)

HISTOGRAMS = (
    HistogramKind(
        "call_seconds",
        ("verb", "code"),
        "How long calls of plugins took in the daemon. Code: 0, or the error's (docs/errors.md).",
        lambda r: r.calls,
    ),
    HistogramKind(
        "fence_changes_seconds",
        ("kind",),
        "How long the daemon's changes of the fence's tables took in nftables. Kind: elements (an attach, a detach,"
        " what other nodes publish), or rules (a start, a repair, a network's first member).",
        lambda r: r.fence_changes,
    ),
    HistogramKind(
        "dns_upstream_seconds",
        (),
        "How long the answers of other DNS servers took, from a container's question on.",
        lambda r: {} if r.upstream_took is None else {(): r.upstream_took},
    ),
)

PROCESS = (
    MetricKind(
        "process_cpu_seconds",
        "counter",
        (),
        "Processor time of the daemon.",
        lambda r: one(None if r.process is None else r.process.cpu),
    ),
    MetricKind(
        "process_resident_memory_bytes",
        "gauge",
        (),
        "Memory of the daemon.",
        lambda r: one(None if r.process is None else r.process.memory),
    ),
    MetricKind(
        "process_open_fds",
        "gauge",
        (),
        "Open descriptors of the daemon.",
        lambda r: one(None if r.process is None else r.process.descriptors),
    ),
    MetricKind(
        "process_start_time_seconds",
        "gauge",
        (),
        "When the daemon started, in Unix seconds.",
        lambda r: one(None if r.process is None else r.process.started),
    ),
)
