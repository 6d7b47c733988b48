"""A full node: what an ADD costs with many attachments, the idle daemon, and its recovery after kill -9."""

from __future__ import annotations

import os
import signal
import socket
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmark.contender import ROUTED, Contender, namespaces, percentile

STEPS = (10, 100, 300, 1000)
REFERENCE_MOST = 300  # attachments of the reference: with ipMasq 1,000 would take a quarter of an hour
PROBES = 40  # ADDs and DELs at each step
IDLE = 30.0  # seconds


def measure(plugins: list[Contender], most: int) -> dict[str, Any]:
    """ADD by the number of attachments for each contender, then the figures of our daemon with all of them."""
    steps = [step for step in STEPS if step <= most]
    curves: dict[str, dict[str, list[float]]] = {}
    ours = plugins[0]
    with namespaces("full", most) as names, namespaces("probe", 1):
        for plugin in (ours, *(p for p in plugins if p.run_dir is None or p.name == ROUTED)):
            curves[plugin.name] = curve(plugin, names, steps if plugin.run_dir is not None else within(steps))
            if plugin is ours:
                figures = {**daemon(ours), **isolated(ours)}
                figures["recovered_s"] = recovery(ours)
            for name in names if plugin is ours else names[: within(steps)[-1]]:
                plugin.call("DEL", name, f"/run/netns/{name}")
    return {"steps": steps, "curves": curves, "daemon": figures}


def within(steps: list[int]) -> list[int]:
    """The steps of the reference."""
    return [step for step in steps if step <= REFERENCE_MOST] or steps[:1]


def curve(plugin: Contender, names: list[str], steps: list[int]) -> dict[str, list[float]]:
    """p50 and p99 of an ADD in milliseconds at each step."""
    result: dict[str, list[float]] = {"p50": [], "p99": []}
    attached = 0
    for step in steps:
        for name in names[attached:step]:
            plugin.call("ADD", name, f"/run/netns/{name}")
        attached = step
        times = probe(plugin, PROBES if step < steps[-1] else 5 * PROBES)
        result["p50"].append(round(statistics.median(times) * 1e3, 2))
        result["p99"].append(round(percentile(times, 0.99) * 1e3, 2))
    return result


def probe(plugin: Contender, count: int, **conf: object) -> list[float]:
    """The seconds of `count` ADDs of one more container."""
    plugin.forget()
    for number in range(count):
        plugin.call("ADD", f"probe-{number}", "/run/netns/probe0", **conf)
        plugin.call("DEL", f"probe-{number}", "/run/netns/probe0", **conf)
    return plugin.times["ADD"]


def daemon(ours: Contender) -> dict[str, Any]:
    """The idle daemon: percent of a CPU, and PSS in MiB."""
    before, begun = ours.processor(), time.perf_counter()
    time.sleep(IDLE)
    used = (ours.processor() - before) / (time.perf_counter() - begun)
    rollup = Path(f"/proc/{ours.daemon()}/smaps_rollup").read_text()
    pss = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return {"idle_percent": round(used * 100, 2), "pss_mib": round(pss / 1024, 1)}


def isolated(ours: Contender) -> dict[str, Any]:
    """ADD into an isolation network with 10 and with 1,000 members; milliseconds."""
    medians = {}
    with namespaces("member", 1000) as names:
        for count, before in ((10, 0), (1000, 10)):
            for name in names[before:count]:
                ours.call("ADD", name, f"/run/netns/{name}", **member(name))
            medians[count] = statistics.median(probe(ours, PROBES, isolationNetwork="bench")) * 1e3
        for name in names:
            ours.call("DEL", name, f"/run/netns/{name}", **member(name))
    return {"network_of_10_ms": round(medians[10], 2), "network_of_1000_ms": round(medians[1000], 2)}


def member(name: str) -> dict[str, str]:
    """The keys of a member; 500 containers to a service, because a bridge has 1,023 ports at most."""
    return {"isolationNetwork": "bench", "service": f"members{int(name.removeprefix('member')) // 500}"}


def recovery(ours: Contender) -> float:
    """Seconds from the start of a daemon, after kill -9, until it serves."""
    assert ours.run_dir is not None
    pid = ours.daemon()
    os.kill(pid, signal.SIGKILL)
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        time.sleep(0.001)
    begun = time.perf_counter()
    while not answers(ours):  # on a loaded machine a start may take longer than a STATUS may wait
        if time.perf_counter() - begun > 60:
            sys.exit("bench: the daemon does not come back")
    took = time.perf_counter() - begun
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(ours.run_dir / "cni.sock"))
    return round(took, 2)


def answers(ours: Contender) -> bool:
    """Whether STATUS succeeds; it starts a daemon if none runs."""
    pid, out = ours.start("STATUS", "", "")
    with os.fdopen(out, "rb") as file:
        file.read()
    return os.waitpid(pid, 0)[1] == 0


def show(result: dict[str, Any]) -> None:
    """Print the figures."""
    steps, figures = result["steps"], result["daemon"]
    print(f"\n{'ADD ms with':15}" + "".join(f"{step:>9}" for step in steps) + "   attached (p50)")
    for name, curves in result["curves"].items():
        print(f"{name:15}" + "".join(f"{value:9.1f}" for value in curves["p50"]))
    ours = result["curves"]["installed"]
    rows = (
        (f"ADD with {steps[-1]} attached / {steps[0]}", ours["p50"][-1] / ours["p50"][0], 1.2),
        ("ADD in a network of 1,000 / 10", figures["network_of_1000_ms"] / figures["network_of_10_ms"], 1.2),
        (f"ADD p99 / p50 with {steps[-1]}", ours["p99"][-1] / ours["p50"][-1], 2.0),
        ("idle daemon, percent of a CPU", figures["idle_percent"], 0.5),
        ("idle daemon, PSS in MiB", figures["pss_mib"], 65),
        ("seconds until served after kill -9", figures["recovered_s"], 0.5),
    )
    for name, value, bar in rows:
        print(f"{name:38}{value:8.2f}   bar {bar}{'' if value <= bar else '   MISSED'}")
