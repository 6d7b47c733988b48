"""The metrics: their names, labels and values, from one reading of the node. Pure.

Imported by the first scrape: it imports prometheus-client, which takes some 60 ms and 4 MB. docs/metrics.md has a row
for each entry of METRICS, and a test compares the two. No label has an endpoint, an address, a container or a pod:
each of those makes new series for as long as the daemon runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from cni.daemon.metrics import node, peers
from cni.daemon.metrics.kinds import PREFIX, HistogramKind
from cni.daemon.metrics.node import HISTOGRAMS, PROCESS
from cni.daemon.metrics.reading import Reading

METRICS = (*node.METRICS, *peers.METRICS)
"""The metrics but for the histograms, and those of the process, which have names that dashboards know."""


class NodeCollector(Collector):
    """A reading, as prometheus-client takes it."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def collect(self) -> Iterator[Metric]:
        """Every metric that has a value."""
        yield from (_histogram(kind, self._reading) for kind in HISTOGRAMS)
        for kinds, prefix in ((METRICS, PREFIX), (PROCESS, "")):
            for kind in kinds:
                made = CounterMetricFamily if kind.kind == "counter" else GaugeMetricFamily
                family = made(prefix + kind.name, kind.text, labels=kind.labels)
                for labels, value in kind.samples(self._reading):
                    family.add_metric(labels, value)
                yield family


def _histogram(kind: HistogramKind, reading: Reading) -> Metric:
    family = HistogramMetricFamily(PREFIX + kind.name, kind.text, labels=kind.labels)
    for labels, times in sorted(kind.times(reading).items()):
        bounds = [*map(str, times.bounds), "+Inf"]
        buckets = list(zip(bounds, map(float, accumulate(times.counts)), strict=True))
        family.add_metric(labels, buckets, times.total)
    return family


def render(reading: Reading, accept: str) -> tuple[str, bytes]:
    """The content type and the body of a scrape. `accept`: the client's header, by which the form is chosen."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry(auto_describe=False)
    registry.register(NodeCollector(reading))
    encode, content_type = choose_encoder(accept)
    return content_type, encode(registry)
