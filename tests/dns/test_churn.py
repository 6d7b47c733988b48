"""50,000 questions while 200 containers come and go, and the daemon is restarted and killed: no wrong answer, none
late."""

from __future__ import annotations

import itertools
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import dns.message
import dns.rdatatype

from tests.dns.conftest import Names, running
from tests.kernel.toolnode import Space
from tests.mesh.fleet import SLOW

CONTAINERS, QUESTIONS, SERVICES, WORKERS = 200, 50_000, 8, 3
LATE = 5.0 * SLOW  # seconds: a resolver's own patience
RETRY = 1.0


@dataclass
class Life:
    """When an address was a service's: from the begin of the ADD to the end of the DEL at most, and surely from the
    end of the ADD to the begin of the DEL."""

    service: str
    address: str = ""
    began: float = 0.0
    sure: float = float("inf")
    ends: float = float("inf")
    gone: float = float("inf")


@dataclass
class Record:
    lives: list[Life] = field(default_factory=list)
    slowest: float = 0.0
    wrong: list[str] = field(default_factory=list)
    asked: int = 0


def come_and_go(
    node: Names, space: Space, record: Record, numbers: Callable[[], int | None], lock: threading.Lock
) -> None:
    """Attach a container, leave it there for a moment, and detach it, again and again."""
    chance = random.Random(space.name)
    while (number := numbers()) is not None:
        name, life = f"c{number}", Life(f"s{number % SERVICES}", began=time.monotonic())
        with lock:
            record.lives.append(life)
        insist(lambda: node.attach(name, space, life.service))  # noqa: B023
        life.address, life.sure = node.address(name), time.monotonic()
        time.sleep(chance.random() / 2)
        life.ends = time.monotonic()
        insist(lambda: node.detach(name, life.service))  # noqa: B023
        life.gone = time.monotonic()


def insist(call: Callable[[], object]) -> None:
    """A call that a runtime repeats while there is no daemon."""
    end = time.monotonic() + 60
    while True:
        try:
            call()
            return
        except AssertionError:
            assert time.monotonic() < end
            time.sleep(0.1)


def ask(node: Names, record: Record, stop: threading.Event, lock: threading.Lock) -> None:
    chance = random.Random(7)
    while not stop.is_set():
        service = f"s{chance.randrange(SERVICES)}"
        message = dns.message.make_query(node.full(service), "A").to_wire()
        began, raw = time.monotonic(), b""
        while not raw and time.monotonic() - began < 2 * LATE:
            try:
                raw = node.exchange("asker", message, seconds=RETRY)
            except (TimeoutError, ConnectionRefusedError):
                time.sleep(0.05)
        done = time.monotonic()
        found = {data.to_text() for rrset in dns.message.from_wire(raw).answer for data in rrset} if raw else set()
        with lock:
            lives = [life for life in record.lives if life.service == service]
            record.asked += 1
            record.slowest = max(record.slowest, done - began)
            may = {life.address for life in lives if life.began < done and life.gone > began}
            must = {life.address for life in lives if life.sure < began and life.ends > done}
            # The address of an ADD that is not answered yet is not known here.
            unknown = any(not life.address and life.began < done for life in lives)
            if not raw or must - found or (found - may and not unknown):
                record.wrong.append(f"{service}: {found}, at least {must}, at most {may}")


def test_no_wrong_answer_and_none_late(tmp_path: Path):
    record, lock, stop = Record(), threading.Lock(), threading.Event()
    numbers = itertools.count()
    with running(tmp_path) as (node, make):
        node.attach("asker", make(), "asker")
        spaces = [make() for _ in range(WORKERS)]

        def next_number() -> int | None:
            number = next(numbers)
            return number if number < CONTAINERS else None

        workers = [
            threading.Thread(target=come_and_go, args=(node, space, record, next_number, lock)) for space in spaces
        ]
        askers = [threading.Thread(target=ask, args=(node, record, stop, lock)) for _ in range(2)]
        for thread in (*workers, *askers):
            thread.start()
        for number in (signal.SIGTERM, signal.SIGKILL):
            time.sleep(10)
            node.restart(number)
        for thread in workers:
            thread.join()
        while record.asked < QUESTIONS and all(thread.is_alive() for thread in askers):
            time.sleep(0.1)
        stop.set()
        for thread in askers:
            thread.join()
    sys.stdout.write(f"{record.asked} questions, {len(record.lives)} containers, slowest {record.slowest:.2f} s\n")
    assert record.wrong == []
    assert (record.slowest < LATE, len(record.lives)) == (True, CONTAINERS)
