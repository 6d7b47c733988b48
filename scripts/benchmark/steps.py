"""Where the time of a call goes, step by step: alone, and among twenty.

As a script (`python steps.py FILE overlayd ...`) this is the daemon from the sources, with a clock around each of
STEPS, in the threads that serve calls.
The steps' milliseconds are wall time: what stretches in a burst is what the calls wait for.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

STEPS = {
    "cni.daemon.api.cni_socket.CniSocket._answer": "the daemon in total: reads the request, answers",
    "cni.verbs.read_request": "read environment and configuration",
    "cni.verbs.render": "write the result",
    "cni.daemon.state.locks.Locks.holding": "wait for a lock",
    "cni.daemon.state.state.State.reserve": "choose addresses",
    "cni.daemon.state.store.Store.apply": "write records",
    "cni.daemon.fence.members.FenceMembers.add_port": "the fence's elements",
    "cni.daemon.fence.members.FenceMembers.remove_port": "remove the fence's elements",
    "cni.daemon.fence.status.FenceStatus.missing": "ask for the fence's elements",
    "cni.daemon.fence.status.FenceStatus.faults": "ask for the fence's rules",
    "cni.host.kernel.Kernel.create_port": "create the veth",
    "cni.host.kernel.Kernel.configure_inside": "lo, addresses, routes in the container",
    "cni.host.kernel.Kernel.raise_port": "bring the port up",
    "cni.host.kernel.Kernel.remove_link": "remove the link",
    "cni.host.kernel.Kernel.find": "look for a link",
    "cni.host.kernel.Kernel.inspect": "read the container's end",
    "cni.host.kernel.Kernel.finish_flows": "wait for flows to be forgotten",
    "cni.daemon.call_log.write": "write the log's line",
}
"""Functions and methods by their place, and what they do. A step's time is without the steps inside it."""
WHOLE = next(iter(STEPS))


class Clock:
    """Wall and processor time by step, without that of inner steps. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stack = threading.local()
        self.seen: dict[str, list[tuple[float, float]]] = {}

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with the clock around it."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            stack = self._stack.__dict__.setdefault("steps", [])
            if not stack and name != WHOLE:
                return function(*args, **kwargs)  # the daemon's own work, not a call's
            stack.append([0.0, 0.0])
            wall, processor = time.perf_counter(), time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.perf_counter() - wall, time.thread_time() - processor
                inside = stack.pop()
                if stack:
                    stack[-1][0] += spent[0]
                    stack[-1][1] += spent[1]
                with self._lock:
                    self.seen.setdefault(name, []).append((spent[0] - inside[0], spent[1] - inside[1]))

        return timed

    def put(self) -> None:
        """Put the clock around every step. Raises AttributeError for one that does not exist any more."""
        for place in STEPS:
            owner, name = place.rpartition(".")[::2]
            holder = _found(owner)
            if place.endswith("Locks.holding"):
                setattr(holder, name, _waiting(getattr(holder, name), self, place))
            else:
                setattr(holder, name, self.around(place, getattr(holder, name)))

    def write(self, file: Path) -> None:
        """Milliseconds by step, and begin anew: calls, wall and processor time in total."""
        with self._lock:
            rows = {
                name: [len(times), sum(wall for wall, _ in times) * 1e3, sum(cpu for _, cpu in times) * 1e3]
                for name, times in self.seen.items()
            }
            self.seen.clear()
        part = file.with_suffix(".part")
        part.write_text(json.dumps(rows))
        part.replace(file)


def _found(place: str) -> Any:
    """The module or class of that name."""
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError:
        module, _, name = place.rpartition(".")
        return getattr(importlib.import_module(module), name)


def _waiting(holding: Callable[..., Any], clock: Clock, place: str) -> Callable[..., Any]:
    """A context manager of which only the entering is timed."""

    @contextlib.contextmanager
    def timed(self: object, name: object) -> Iterator[None]:
        held = holding(self, name)
        clock.around(place, held.__enter__)()
        try:
            yield
        except BaseException:
            if not held.__exit__(*sys.exc_info()):
                raise
        else:
            held.__exit__(None, None, None)

    return timed


def main() -> None:
    """The daemon, whose clock is written to the file at every SIGUSR2."""
    sys.path.insert(0, str(ROOT))
    from cni.daemon import main as daemon

    clock = Clock()
    clock.put()
    signal.signal(signal.SIGUSR2, lambda *_: clock.write(Path(sys.argv[1])))
    sys.exit(daemon.main(sys.argv[3:]))


# --- the measurement -------------------------------------------------------------------------------------------------


def measure(plugin: Any, count: int, at_once: int, scratch: Path) -> dict[str, Any]:
    """The steps of ADD, CHECK and DEL one at a time, and of ADD and DEL `at_once` at a time; milliseconds of a call."""
    from benchmark.burst import run
    from benchmark.contender import namespaces

    file = scratch / "steps.json"
    plugin.stop()
    python = Path(os.environ.get("ZLAYER_VENV", ROOT / ".venv")) / "bin" / "python"
    words = [str(python), __file__, str(file), "overlayd", "--run-dir", str(plugin.run_dir)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (scratch / "steps.log").open("w") as log:
        daemon = subprocess.Popen(
            [*words, "--data-dir", plugin.conf["dataDir"]], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    _await_socket(plugin, daemon)
    result: dict[str, Any] = {}
    try:
        with namespaces("step", count) as names:
            plugin.call("DEL", names[0], f"/run/netns/{names[0]}", json.loads(_add(plugin, names[0])))
            _read(daemon, file)
            results = {}
            plugin.forget()
            for name in names:
                results[name] = json.loads(_add(plugin, name))
            result["ADD"] = {"total": statistics.mean(plugin.times["ADD"]) * 1e3, "steps": _read(daemon, file)}
            for verb in ("CHECK", "DEL"):
                for name in names:
                    plugin.call(verb, name, f"/run/netns/{name}", results[name])
                result[verb] = {"total": statistics.mean(plugin.times[verb]) * 1e3, "steps": _read(daemon, file)}
            found: dict[str, object] = {}
            for verb in ("ADD", "DEL"):
                seconds, _ = run(plugin, verb, names, at_once, found)
                result[f"{verb}, {at_once} at a time"] = {
                    "total": seconds / count * at_once * 1e3,
                    "steps": _read(daemon, file),
                }
    finally:
        daemon.terminate()
        daemon.wait(20)
    return {"count": count, "verbs": result}


def _add(plugin: Any, name: str) -> bytes:
    answer: bytes = plugin.call("ADD", name, f"/run/netns/{name}")
    return answer


def _await_socket(plugin: Any, daemon: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 20
    while not (plugin.run_dir / "cni.sock").exists():
        if daemon.poll() is not None or time.monotonic() > end:
            sys.exit("bench: the daemon from the sources does not start")
        time.sleep(0.02)


def _read(daemon: subprocess.Popen[bytes], file: Path) -> dict[str, list[float]]:
    """The clock's figures since the last reading."""
    file.unlink(missing_ok=True)
    daemon.send_signal(signal.SIGUSR2)
    while not file.exists():
        time.sleep(0.01)
    figures: dict[str, list[float]] = json.loads(file.read_text())
    return figures


def show(result: dict[str, Any]) -> None:
    """Print the steps of each verb: milliseconds of a call, wall and processor."""
    count = result["count"]
    print(f"\nWhere the time of a call goes: ms, means of {count} calls, the daemon from the sources")
    for verb, figures in result["verbs"].items():
        steps = figures["steps"]
        inside = sum(wall for _, wall, _ in steps.values()) / count
        print(f"\n{verb}: {figures['total']:.2f} ms from exec to exit")
        print(f"{'':56}{'wall':>8}{'processor':>11}")
        print(f"  {'the process: exec, launcher, socket, exit':54}{figures['total'] - inside:8.2f}{'':11}")
        for name, (_, wall, cpu) in sorted(steps.items(), key=lambda row: -row[1][1]):
            label = STEPS[name] if name != WHOLE else "the daemon's remaining code"
            print(f"  {label:54}{wall / count:8.2f}{cpu / count:11.2f}")


if __name__ == "__main__":
    main()
