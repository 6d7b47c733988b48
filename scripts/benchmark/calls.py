"""ADD, CHECK, STATUS and DEL, each contender in turn, one process a call."""

from __future__ import annotations

import json
import statistics
from typing import Any

from benchmark import netns
from benchmark.contender import VERBS, Contender, percentile, ratio

# The bars: verb, of which contender, against which one, at most.
BARS = (
    ("ADD", "installed", "bridge", 0.55),
    ("ADD", "installed", "bridge ipMasq", 0.28),
    ("ADD", "single file", "bridge", 0.60),
    ("CHECK", "installed", "bridge", 0.55),
    ("STATUS", "installed", "bridge", 0.55),
    ("DEL", "installed", "bridge", 0.15),
    ("ADD", "routed", "installed", 1.05),
)


def measure(plugins: list[Contender], rounds: int, warm: int) -> dict[str, Any]:
    """Times in milliseconds, and the ratios of the bars. STATUS is compared with the reference's CHECK."""
    netns.add("bench")
    for number in range(warm + rounds):
        if number == warm:
            for plugin in plugins:
                plugin.forget()
        for plugin in plugins:
            name, place = f"bench-{number}", "/run/netns/bench"
            previous = json.loads(plugin.call("ADD", name, place))
            plugin.call("CHECK", name, place, previous)
            if plugin.run_dir is not None:
                plugin.call("STATUS", name, "")
            plugin.call("DEL", name, place, previous)
    netns.delete("bench")
    figures = {
        plugin.name: {verb: summary(plugin.times[verb]) for verb in VERBS if plugin.times[verb]} for plugin in plugins
    }
    by_name = {plugin.name: plugin for plugin in plugins}
    ratios = []
    for verb, ours, theirs, bar in BARS:
        other = "CHECK" if verb == "STATUS" else verb
        value = ratio(by_name[ours].times[verb], by_name[theirs].times[other])
        ratios.append({"verb": verb, "ours": ours, "theirs": f"{theirs} {other}", "ratio": round(value, 3), "bar": bar})
    return {"ms": figures, "ratios": ratios}


def summary(times: list[float]) -> dict[str, float]:
    """p50 and p99 in milliseconds."""
    return {"p50": round(statistics.median(times) * 1e3, 2), "p99": round(percentile(times, 0.99) * 1e3, 2)}


def show(result: dict[str, Any], rounds: int) -> None:
    """Print the figures."""
    print(
        f"{rounds} rounds, each contender in turn\n{'ms':15}"
        + "".join(f"{verb + ' p50':>12}{'p99':>8}" for verb in VERBS)
    )
    for name, verbs in result["ms"].items():
        cells = (f"{verbs[v]['p50']:12.1f}{verbs[v]['p99']:8.1f}" if v in verbs else f"{'-':>12}{'':8}" for v in VERBS)
        print(f"{name:15}" + "".join(cells))
    print()
    for row in result["ratios"]:
        verdict = "" if row["ratio"] <= row["bar"] else "   MISSED"
        print(f"{row['verb']:7}{row['ours']:12} / {row['theirs']:22}{row['ratio']:7.2f}   bar {row['bar']}{verdict}")
