"""The storm: workers that behave like a runtime, and a fate that kills, stops, restarts and reboots meanwhile.

Everything is drawn from one seed. Threads and processes race, so a seed names a mix of events and not an order; a
failure prints it, what was not as it should be, and the end of the daemon's log.
"""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.blackbox import snapshot

from . import inside, judge
from .judge import Live
from .machine import Json, Machine, Space, busy

WORKERS = 8
CONTAINERS = 100
SETTLE = 6.0  # seconds until everything must be in order: 3 for a failed ADD, and what a busy machine takes longer
WAITING = 4.0  # seconds a fault point waits for a thread to pass it before another has its turn
LATE = 3.0  # seconds a busy machine may add to what a call may take
MOST = {"ADD": 40.0, "DEL": 10.0, "CHECK": 10.0, "STATUS": 2.0, "GC": 32.0}
SERVICES = (
    {"service": "web"},
    {"service": "db", "isolationNetwork": "back"},
    {"service": "job", "mode": "shared"},
    {"service": "web", "isolationNetwork": "front"},
    {"service": "web", "autostart": False},
)
"""What the containers ask for, in turn. The last write their deletions down whenever the daemon is away."""


@dataclass
class Box:
    """One container id, as its runtime sees it. `live` is what ADD said, None when it is not attached."""

    number: int
    space: Space
    conf: Json
    generation: int = 0
    live: Live | None = None
    prev: Json | None = None
    spent: bool = False  # an ADD failed, and no DEL follows: it must be gone by itself
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def cid(self) -> str:
        return f"box{self.number}-{self.generation}"


class Storm:
    """One storm on one machine."""

    def __init__(self, on: Machine, seed: int, containers: int = CONTAINERS, workers: int = WORKERS) -> None:
        self.on = on
        self.seed = seed
        self.random = random.Random(seed)
        self.workers = workers
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.journal: list[str] = []
        self.shaken = 0.0  # until when the daemon's state excuses a passing error (monotonic clock)
        self.boxes = [self._box(n) for n in range(containers)]
        self._left = 0
        self._guard = threading.Lock()
        self._processes: set[int] = set()

    def _box(self, number: int) -> Box:
        return Box(number, Space(self.on), self.on.conf(**SERVICES[number % len(SERVICES)]))

    # --- calls -----------------------------------------------------------------------------------------------------

    def call(self, verb: str, box: Box | None, conf: Json, *, path: str | None = None,
             kill_after: float | None = None) -> tuple[int, dict[str, Any]]:  # fmt: skip
        """One call: (exit code, what it said). Killed after `kill_after` seconds; judged by what it took."""
        names = {"CNI_CONTAINERID": box.cid, "CNI_IFNAME": "eth0"} if box else {}
        where = (box.space.path if path is None else path) if box else ""
        env = self.on.environment(verb, CNI_NETNS=where, **names)
        started = time.monotonic()
        process = subprocess.Popen(self.on.program.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, env=env, cwd="/")  # fmt: skip
        killer = None
        if kill_after is not None:
            killer = threading.Timer(kill_after, process.kill)
            killer.start()
        try:
            out, err = process.communicate(json.dumps(conf).encode(), timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            self.fault(f"{verb} of {box and box.cid} did not end within a minute")
            return -1, {}
        finally:
            if killer is not None:
                killer.cancel()
        took = time.monotonic() - started
        self.journal.append(f"{time.strftime('%H:%M:%S')} {time.time() % 1:.3f} {verb} {box and box.cid} {where}: "
                            f"{process.returncode} after {took:.3f} s {out[:150]!r} {err[-200:]!r}")  # fmt: skip
        with self._guard:
            self.counts[verb] += 1
        if took > MOST[verb] + busy(LATE):
            self.fault(f"{verb} of {box and box.cid} took {took:.1f} s")
        return process.returncode, self._said(verb, process.returncode, out, err)

    def _said(self, verb: str, code: int, out: bytes, err: bytes) -> dict[str, Any]:
        if code == 0 and verb != "ADD":
            if out:
                self.fault(f"{verb} printed {out[:200]!r}")
            return {}
        if code < 0:
            self.counts["plugins killed"] += 1
            return {}
        try:
            return dict(json.loads(out))
        except ValueError:
            self.fault(f"{verb}, exit code {code}, printed {out[:200]!r}; stderr {err[-500:]!r}")
            return {}

    def fault(self, text: str) -> None:
        with self._guard:
            self.wrong.append(text)

    def shake(self, seconds: float = 4.0) -> None:
        """Something is being done to the daemon: for so long, errors that pass are no faults."""
        self.shaken = max(self.shaken, time.monotonic() + busy(seconds))

    def _excused(self, begun: float) -> bool:
        return begun < self.shaken or time.monotonic() < self.shaken or self.on.program.armed

    # --- what a worker does ----------------------------------------------------------------------------------------

    def work(self, number: int) -> None:
        """One worker, until no operations are left."""
        self.on.enter()
        dice = random.Random(f"{self.seed}/{number}")
        while self._take():
            if self.wrong:
                return
            try:
                self.one(dice)
            except Exception as error:  # noqa: BLE001 - told with the seed, like every other fault
                self.fault(f"the storm itself failed: {error!r}")
                return

    def _take(self) -> bool:
        with self._guard:
            self._left -= 1
            return self._left >= 0

    def one(self, dice: random.Random) -> None:
        """One operation on a container of the dice's choice, or on none."""
        lot = dice.random()
        if lot < 0.06:
            return self.status()
        if lot < 0.08:
            return self.collect()
        while True:
            box = dice.choice(self.boxes)
            if box.lock.acquire(blocking=False):
                break
        try:
            if box.spent:
                return self.status()
            choices = self._attached if box.live else self._detached
            names, weights = zip(*choices.items(), strict=True)
            (chosen,) = dice.choices(names, weights)
            return getattr(self, chosen)(box, dice)
        finally:
            box.lock.release()

    _detached = {"add": 80, "add_and_kill": 15, "delete": 5, "tangle": 5, "twins": 3}  # noqa: RUF012 - a table
    _attached = {"delete": 60, "check": 20, "add_again": 6, "delete_and_kill": 8, "vanish": 6}  # noqa: RUF012

    def add(self, box: Box, _: random.Random) -> None:
        begun = time.monotonic()
        code, said = self.call("ADD", box, box.conf)
        self._added(box, begun, code, said)

    def _added(self, box: Box, begun: float, code: int, said: dict[str, Any]) -> None:
        if code == 0:
            self.attached(box, said)
        elif code < 0:
            self._given_up(box, True)
        elif said.get("code") == 11 and (self._excused(begun) or not box.conf.get("autostart", True)):
            self.counts["ADD: later"] += 1
            self._given_up(box, True)
        else:
            self.fault(f"ADD of {box.cid}: {code} {said}")

    def attached(self, box: Box, result: Json) -> None:
        """The runtime has a result: no other container may have these addresses."""
        mine = tuple(ip["address"] for ip in result["ips"])
        live = Live(box.cid, box.space.path, mine, result["interfaces"][-2]["name"])
        with self._guard:
            for other in self.boxes:
                if other.live and other is not box and set(other.live.addresses) & set(mine):
                    self.wrong.append(f"{box.cid} was given {mine}, which {other.cid} has")
            box.live, box.prev = live, result

    def add_and_kill(self, box: Box, dice: random.Random) -> None:
        """The runtime gives up; then it calls DEL, or never anything again."""
        daemon = self.on.daemon()
        code, said = self.call(
            "ADD", box, box.conf, kill_after=dice.choice((0.004, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1))
        )
        if code == 0:
            return self.attached(box, said)
        time.sleep(0.4)
        # If plugin and daemon died together, no process knows of the attachment until a DEL, or the end of the
        # namespace. Else nothing stays, even if the result was out already.
        unknowable = daemon == 0 or self.on.daemon() != daemon
        return self._given_up(box, unknowable or dice.random() < 0.3)

    def _given_up(self, box: Box, delete: bool) -> None:
        if delete:
            self.delete(box, None)
        else:
            box.spent = True
            self.counts["ADDs given up for ever"] += 1

    def delete(self, box: Box, _: random.Random | None) -> None:
        conf = box.conf if box.prev is None else {**box.conf, "prevResult": box.prev}
        box.live = box.prev = None
        code, said = self.call("DEL", box, conf)
        if code > 0:
            self.fault(f"DEL of {box.cid}: {code} {said}")
        elif code < 0:
            self.delete(box, None)

    def delete_and_kill(self, box: Box, dice: random.Random) -> None:
        """A DEL that is killed, and repeated without the namespace, as runtimes do."""
        conf = {**box.conf, "prevResult": box.prev}
        box.live = box.prev = None
        self.call("DEL", box, conf, kill_after=dice.choice((0.004, 0.01, 0.02, 0.04)))
        code, said = self.call("DEL", box, box.conf, path="")
        if code > 0:
            self.fault(f"the second DEL of {box.cid}: {code} {said}")
        elif code < 0:
            self.delete(box, None)

    def check(self, box: Box, _: random.Random) -> None:
        begun = time.monotonic()
        code, said = self.call("CHECK", box, {**box.conf, "prevResult": box.prev})
        if code > 0 and not (said.get("code") in (11, 102) and self._excused(begun)):
            self.fault(f"CHECK of {box.cid}: {code} {said}")

    def add_again(self, box: Box, _: random.Random) -> None:
        """A second ADD is an error and touches nothing."""
        begun = time.monotonic()
        code, said = self.call("ADD", box, box.conf)
        if code == 0 or (
            code > 0 and said.get("code") != 101 and not (said.get("code") == 11 and self._excused(begun))
        ):
            self.fault(f"a second ADD of {box.cid}: {code} {said}")

    def tangle(self, box: Box, dice: random.Random) -> None:
        """ADD and DEL at once; whatever both say, one more DEL and nothing is left."""
        other = threading.Thread(target=lambda: (self.on.enter(), self.call("DEL", box, box.conf)))
        other.start()
        time.sleep(dice.random() * 0.03)
        self.call("ADD", box, box.conf)
        other.join()
        self.delete(box, None)

    def twins(self, box: Box, _: random.Random) -> None:
        """Two ADDs at once: one of them has it, or none; after a DEL nothing is left."""
        codes: list[int] = []
        other = threading.Thread(target=lambda: (self.on.enter(), codes.append(self.call("ADD", box, box.conf)[0])))
        other.start()
        codes.append(self.call("ADD", box, box.conf)[0])
        other.join()
        if codes == [0, 0]:
            self.fault(f"two ADDs of {box.cid} succeeded")
        self.delete(box, None)

    def vanish(self, box: Box, _: random.Random) -> None:
        """The namespace goes without a DEL, and the container never comes back under its id."""
        box.live = box.prev = None
        box.space.delete()
        box.space = Space(self.on)
        box.generation += 1
        with self._guard:
            self.counts["namespaces deleted"] += 1

    def status(self) -> None:
        begun = time.monotonic()
        code, said = self.call("STATUS", None, self.on.conf())
        if code > 0 and not (said.get("code") in (50, 51) and self._excused(begun)):
            self.fault(f"STATUS: {code} {said}")

    def collect(self) -> None:
        """GC with every container that has been begun and not ended: it may take away none of them."""
        begun = time.monotonic()
        valid = [{"containerID": box.cid, "ifname": "eth0"} for box in self.boxes if box.live or box.lock.locked()]
        conf = self.on.conf(**{"cni.dev/valid-attachments": valid})
        code, said = self.call("GC", None, conf)
        if code > 0 and not (said.get("code") == 11 and self._excused(begun)):
            self.fault(f"GC: {code} {said}")

    # --- fate ------------------------------------------------------------------------------------------------------

    def rage(self, operations: int, points: list[str], pause: float = 0.5) -> None:
        """So many operations by all workers, while fate works through `points` (taken off the list as they fire)."""
        self._left = operations
        crew = [threading.Thread(target=self.work, args=(n,), name=f"worker-{n}") for n in range(self.workers)]
        for each in crew:
            each.start()
        dice = random.Random(f"{self.seed}/fate/{operations}/{len(points)}")
        armed = 0.0
        while any(each.is_alive() for each in crew):
            if points and not self.on.program.armed and dice.random() < 0.75:
                self.on.program.arm(points[0], "kill")
                points.append(points.pop(0))
                armed = time.monotonic()
            elif self.on.program.armed and time.monotonic() - armed > busy(WAITING):
                self.on.program.disarm()
            else:
                self.strike(dice)
            end = time.monotonic() + pause
            while time.monotonic() < end and any(each.is_alive() for each in crew):
                time.sleep(0.02)
                self._notice(points)
        for each in crew:
            each.join()
        self.on.program.disarm()
        self._notice(points)

    def pass_by(self, points: list[str], rounds: int = 200) -> None:
        """Ordinary operations until a process has been killed at each of `points`, which is empty then. If no thread
        passes a point, the daemon is killed: some points are passed only while no daemon answers. (A round of the
        reconciler takes a daemon that lives for a while.)"""
        for _ in range(rounds):
            if not points:
                return
            self.on.program.arm(points[0], "kill")
            points.append(points.pop(0))
            self._left = 400
            crew = [threading.Thread(target=self.work, args=(n,)) for n in range(self.workers)]
            for each in crew:
                each.start()
            end, next_kill = time.monotonic() + busy(WAITING), time.monotonic() + busy(0.8)
            while self.on.program.armed and time.monotonic() < end:
                time.sleep(0.02)
                if time.monotonic() > next_kill and "look" not in points[-1]:
                    self.shake()
                    self.on.signal_daemon(signal.SIGKILL, wait=False)
                    next_kill = time.monotonic() + busy(1.5)
            self.shake()
            self._left = 0
            for each in crew:
                each.join()
            self.on.program.disarm()
            self._notice(points)

    def _notice(self, points: list[str]) -> None:
        """Take note of the points that have been taken."""
        fired = self.on.program.fired()
        if len(fired) != self.counts["points fired"]:
            for point in fired[self.counts["points fired"] :]:
                if point in points:
                    points.remove(point)
            self.counts["points fired"] = len(fired)
            self.shake()

    def strike(self, dice: random.Random) -> None:
        """Something happens to the daemon."""
        lot = dice.random()
        self.shake()
        if lot < 0.35:
            self.counts["daemons killed"] += self.on.signal_daemon(signal.SIGKILL, wait=False)
        elif lot < 0.5:
            self.counts["daemons restarted"] += self.on.signal_daemon(signal.SIGTERM, wait=False)
        elif lot < 0.65:
            seconds = dice.choice((0.2, 1.0, 2.5))
            self.shake(seconds + 4)
            if self.on.signal_daemon(signal.SIGSTOP, wait=False):
                self.counts["daemons stopped"] += 1
                time.sleep(seconds)
                self.on.signal_daemon(signal.SIGCONT, wait=False)
        elif lot < 0.73:
            self.counts["sockets deleted"] += 1
            for name in ("cni.sock", "overlayd.lock"):
                (self.on.run_dir / name).unlink(missing_ok=True)

    # --- quiet -----------------------------------------------------------------------------------------------------

    def quiet(self) -> None:
        """Without calls all invariants hold soon. Raises AssertionError with the seed and all that is wrong."""
        self._raise_wrong()
        self.on.inside(self._calm)
        live = {box.cid: box.live for box in self.boxes if box.live}
        end = time.monotonic() + busy(SETTLE)
        while True:
            left = judge.faults(self.on, live) + judge.stray_files(self.on)
            if not left or time.monotonic() > end:
                break
            time.sleep(0.1)
        self.wrong += left
        self._raise_wrong()
        self.counts["quiet points"] += 1
        for box in self.boxes:
            if box.spent:
                box.spent = False
                box.generation += 1

    def _calm(self) -> None:
        """The daemon is up, and was told which containers there are."""
        self.on.start_daemon()
        self.shaken = 0.0
        code, said = 1, {}
        for _ in range(3):
            spent = [{"containerID": b.cid, "ifname": "eth0"} for b in self.boxes if b.spent]
            valid = [{"containerID": b.cid, "ifname": "eth0"} for b in self.boxes if b.live]
            code, said = self.call("GC", None, self.on.conf(**{"cni.dev/valid-attachments": valid + spent}))
            if code == 0:
                return
        self.fault(f"GC at a quiet point: {code} {said}")

    def lull(self, operations: int) -> None:
        """Ordinary operations while nothing happens to the daemon. It counts what sent the calls; a daemon that is
        killed takes its counts along, so that only those of a lull are complete."""
        daemon, before = self.on.daemon(), self.on.ask("status")["calls"]
        self._left = operations
        crew = [threading.Thread(target=self.work, args=(n,)) for n in range(self.workers)]
        for each in crew:
            each.start()
        for each in crew:
            each.join()
        self._raise_wrong()
        assert self.on.daemon() == daemon, f"the daemon ended, and was not killed\n{self.on.log_tail()}"
        after = self.on.ask("status")["calls"]
        for sender in ("launcher", "python"):
            self.counts[f"sent by {sender}"] += after[sender] - before[sender]

    def sent_by_launcher(self, at_least: float) -> None:
        """Raises AssertionError if the launcher sent a smaller share of the lulls' calls."""
        launcher, python = self.counts["sent by launcher"], self.counts["sent by python"]
        assert launcher + python > 0, "no calls were counted"
        share = launcher / (launcher + python)
        assert share >= at_least, f"the launcher sent {launcher} calls, Python {python}, to a daemon that lived"

    def _raise_wrong(self) -> None:
        if self.wrong:
            text = "\n".join(line[:600] for line in self.wrong[:40])
            raise AssertionError(f"seed {self.seed}, after {self.told()}:\n{text}\n{self._history(text)}")

    def _history(self, text: str) -> str:
        """What was done to the containers that `text` names, and what the daemon's log says of them; then its end."""
        named = set(re.findall(r"box[0-9]+-[0-9]+", text))
        done = [line for line in self.journal if named & set(re.findall(r"box[0-9]+-[0-9]+", line))]
        log = self.on.log_tail(1 << 24).splitlines()
        said = [line for line in log if any(f"{name} " in line for name in named)]
        return "\n".join(["--- calls ---", *done[-60:], "--- the daemon's log ---", *said[-60:], "...", *log[-30:]])

    def told(self) -> str:
        """The counts, for people."""
        return ", ".join(f"{name} {count}" for name, count in sorted(self.counts.items()))

    def reboot(self, wiped: bool) -> None:
        """In the middle of everything: the power goes. Some runtimes come back and delete what they remember."""
        remembered = [(box.cid, box.conf) for box in self.boxes if box.live]
        self.on.power_cut(wiped)
        self.counts[f"reboots ({'wiped' if wiped else 'kept'})"] += 1
        self.renew()
        self.on.start_daemon()
        if believed := self.on.ask("attachments"):
            self.fault(f"after a reboot {len(believed)} attachments of before are believed in")
        fresh = self.boxes[: len(self.boxes) // 5]
        self._each(fresh, lambda box: self.add(box, None))  # type: ignore[arg-type]
        late = [Box(0, self.boxes[0].space, conf) for _, conf in remembered]
        for box, (cid, _) in zip(late, remembered, strict=True):
            box.number, box.generation = (int(part) for part in cid.removeprefix("box").split("-"))
        self._each(late[:20], self._late_delete)

    def renew(self) -> None:
        """Other containers, in namespaces of their own: the machine was rebooted."""
        for box in self.boxes:
            box.live = box.prev = None
            box.spent = False
            box.space = Space(self.on)
            box.generation += 1

    def _late_delete(self, box: Box) -> None:
        code, said = self.call("DEL", box, box.conf, path="")
        if code:
            self.fault(f"a DEL of {box.cid}, from before the reboot: {code} {said}")

    def _each(self, boxes: list[Box], work: Callable[[Box], None]) -> None:
        def crew(part: list[Box]) -> None:
            self.on.enter()
            for box in part:
                work(box)

        threads = [threading.Thread(target=crew, args=(boxes[n :: self.workers],)) for n in range(self.workers)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()

    # --- empty -----------------------------------------------------------------------------------------------------

    def warm(self) -> None:
        """Every service has been there once, with its bridge: from here on an empty machine always looks the same."""
        self.on.start_daemon()
        some = self.boxes[: len(SERVICES)]
        self._each(some, lambda box: self.add(box, None))  # type: ignore[arg-type]
        self._each(some, lambda box: self.delete(box, None))
        self._raise_wrong()

    def empty(self) -> None:
        """Every container gone, by DEL."""
        self._each([box for box in self.boxes if box.live], lambda box: self.delete(box, None))

    def same_as(self, first: snapshot.Snapshot, patience: float = 12.0) -> None:
        """The machine looks as in `first`. Raises AssertionError."""
        left = snapshot.settle(first, self.on.snapshot, patience)
        left = [line for line in left if not line.startswith(("+ files", "- files")) or not _may_come(line)]
        if left:
            self.wrong += ["the emptied machine does not look as at first:", *left[:40]]
            self._raise_wrong()


def _may_come(line: str) -> bool:
    """Whether a file of that line of a snapshot may be there or not: the database's own, and the second file of a long
    log."""
    return "/state.db" in line or "/overlayd.log.1:" in line


def daemon_points() -> list[str]:
    """Every fault point a storm comes by."""
    return [point for point in inside.all_points() if not any(rare in point for rare in inside.RARE)]
