"""Many containers at once: so many calls at a time, containers per second, and the processor time of a call."""

from __future__ import annotations

import collections
import json
import os
import select
import time
from typing import Any

from benchmark.contender import Contender, finish, namespaces

BARS = {"ADD": 1.5, "DEL": 2.0}  # containers per second, of the plain bridge's, at least
PROCESSOR = 0.6  # processor time of an ADD, of the plain bridge's, at most


def run(
    plugin: Contender, verb: str, names: list[str], at_once: int, results: dict[str, object]
) -> tuple[float, float]:
    """Call `verb` for all containers, `at_once` at a time; returns seconds and seconds of processor time."""
    waiting, running = collections.deque(names), {}
    poll = select.poll()
    used, begun = plugin.processor(), time.perf_counter()
    while waiting or running:
        while waiting and len(running) < at_once:
            name = waiting.popleft()
            pid, out = plugin.start(verb, name, f"/run/netns/{name}", results.get(name))
            running[out] = (name, pid)
            poll.register(out, select.POLLIN | select.POLLHUP)
        for out, _ in poll.poll():
            name, pid = running.pop(out)
            poll.unregister(out)
            answer = finish(plugin, verb, pid, out)
            if verb == "ADD":
                results[name] = json.loads(answer)
    return time.perf_counter() - begun, plugin.processor() - used


def measure(plugins: list[Contender], count: int, at_once: int, rounds: int) -> dict[str, Any]:
    """Containers per second and processor milliseconds per call, medians over the rounds, by contender and verb."""
    seen: dict[str, dict[str, list[tuple[float, float]]]] = {p.name: {"ADD": [], "DEL": []} for p in plugins}
    with namespaces("burst", count) as names:
        for plugin in plugins:  # starts the daemon, makes the bridge
            first: dict[str, object] = {}
            run(plugin, "ADD", names[:1], 1, first) if plugin.run_dir is None else plugin.call(
                "ADD", names[0], place(names[0])
            )
            plugin.call("DEL", names[0], place(names[0]))
        for _ in range(rounds):
            for plugin in plugins:
                results: dict[str, object] = {}
                for verb in ("ADD", "DEL"):
                    seconds, used = run(plugin, verb, names, at_once, results)
                    seen[plugin.name][verb].append((count / seconds, used / count * 1e3))
    return {
        name: {
            verb: {"per_second": median([a for a, _ in rows]), "processor_ms": median([b for _, b in rows])}
            for verb, rows in verbs.items()
        }
        for name, verbs in seen.items()
    }


def place(name: str) -> str:
    """The path of a namespace."""
    return f"/run/netns/{name}"


def median(values: list[float]) -> float:
    """The median, rounded to two digits."""
    return round(sorted(values)[len(values) // 2], 2)


def show(result: dict[str, Any], count: int, at_once: int) -> None:
    """Print the figures, and the ratios to the plain bridge."""
    print(f"\n{count} containers, {at_once} at a time, on {os.cpu_count()} CPUs")
    print(f"{'':15}{'ADD/s':>9}{'DEL/s':>9}{'ADD cpu ms':>12}{'DEL cpu ms':>12}")
    for name, verbs in result.items():
        row = "".join(f"{verbs[verb]['per_second']:9.0f}" for verb in ("ADD", "DEL"))
        print(f"{name:15}{row}" + "".join(f"{verbs[verb]['processor_ms']:12.2f}" for verb in ("ADD", "DEL")))
    base = result["bridge"]
    for name in ("installed", "single file"):
        for verb, bar in BARS.items():
            value = result[name][verb]["per_second"] / base[verb]["per_second"]
            print(f"{verb}/s {name:12} / bridge{value:18.2f}   bar {bar}{'' if value >= bar else '   MISSED'}")
        value = result[name]["ADD"]["processor_ms"] / base["ADD"]["processor_ms"]
        verdict = "" if value <= PROCESSOR else "   MISSED"
        print(f"processor of an ADD, {name:12} / bridge{value:8.2f}   bar {PROCESSOR}{verdict}")
