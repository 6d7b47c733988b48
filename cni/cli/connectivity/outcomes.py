"""What happened to the packets of a pair: they are sent, and what became of them is kept."""

from __future__ import annotations

from dataclasses import dataclass, field

from cni import answers
from cni.cli.connectivity import checks, probes
from cni.cli.connectivity.causes import Symptom
from cni.cli.connectivity.checks import Pair

ALLOWED, FORBIDDEN = 6.0, 1.2  # seconds until a packet that should arrive has failed to; that should not, has not


@dataclass
class Outcome:
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


def symptom(outcome: Outcome, kind: str, routed_arrives: bool) -> Symptom:
    """The cell of a kind, as the search for a cause takes it."""
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


def send(kind: str, pair: Pair, should: bool) -> tuple[bool | None, str]:
    """Send packets of a kind; runs in the source's namespace."""
    patience = ALLOWED if should else FORBIDDEN
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
        arrives = probes.tcp(pair.address, size, patience, port=pair.port or probes.PORT)
    return arrives, "arrives" if arrives else "does not arrive"
