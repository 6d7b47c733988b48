"""What a metric is, and the bound of a label's values. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cni.daemon.durations import Times
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


@dataclass(frozen=True, slots=True)
class HistogramKind:
    """One histogram: as MetricKind; `times`: its values in a reading, by the values of its labels."""

    name: str
    labels: tuple[str, ...]
    text: str
    times: Callable[[Reading], Mapping[tuple[str, ...], Times]]


def one(value: float | None) -> list[Sample]:
    return [] if value is None else [((), float(value))]


def bounded(counts: Mapping[str, float]) -> Iterator[Sample]:
    """The MOST largest values by their label, and the sum of the others as OTHER."""
    largest = sorted(counts, key=lambda label: (-counts[label], label))
    yield from (((label,), counts[label]) for label in largest[:MOST])
    if rest := largest[MOST:]:
        yield (OTHER,), sum(counts[label] for label in rest)
