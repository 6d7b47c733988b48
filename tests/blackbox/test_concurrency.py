"""BB-F01 to F03: many at once, as runtimes call; and many after each other, which leave nothing (the leak test)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .harness import netns, shapes
from .harness.calls import Answer
from .harness.template import Json
from .harness.world import Container, World

Lab = Callable[[str], World]
At = Callable[..., str]

MANY = 50


def at_once(jobs: list[Callable[[], Answer]]) -> list[Answer]:
    """All jobs together; their answers in order."""
    with ThreadPoolExecutor(max_workers=len(jobs)) as pool:
        return list(pool.map(lambda job: job(), jobs))


def attach_all(world: World, conf: Json, count: int) -> list[tuple[Container, Json]]:
    boxes = [world.container() for _ in range(count)]
    answers = at_once([lambda box=box: box.add(conf) for box in boxes])  # type: ignore[misc]
    return [(box, answer.ok()) for box, answer in zip(boxes, answers, strict=True)]


def test_f01_fifty_first_attachments_at_once(fresh: Lab, at: At) -> None:
    """Nothing exists yet: they also race for the bridge, and for starting the daemon."""
    world = fresh("base")
    conf = world.conf(at("1.0.0"))
    made = attach_all(world, conf, MANY)
    addresses = {address for _, result in made for address in shapes.addresses(result)}
    macs = {shapes.inside(result)[0]["mac"] for _, result in made}
    peers = {shapes.host_side(result)[-1]["name"] for _, result in made}
    assert len(addresses) == len(macs) == len(peers) == MANY
    for box, result in made:
        assert box.addresses() == set(shapes.addresses(result))
    assert made[0][0].ping(shapes.bare(made[-1][1])[0])
    for answer in at_once([lambda b=b, r=r: b.delete(conf, prev=r) for b, r in made]):  # type: ignore[misc]
        answer.ok()
    assert not [name for name in world.links() if name in peers]
    assert world.reserved() == set()


def test_f01_check_after_a_parallel_start(fresh: Lab, at: At) -> None:
    """The bridge that the first results report is the bridge that stays (its MAC too)."""
    world = fresh("base")
    conf = world.conf(at("1.0.0"))
    for box, result in attach_all(world, conf, 12):
        box.check(conf, result).ok()


def test_f02_attachments_come_and_go_together(world: World, at: At) -> None:
    conf = world.conf(at("1.0.0"))
    old = attach_all(world, conf, 10)
    boxes = [world.container() for _ in range(10)]
    jobs: list[Callable[[], Answer]] = []
    for (gone, result), box in zip(old, boxes, strict=True):
        jobs.append(lambda gone=gone, result=result: gone.delete(conf, prev=result))  # type: ignore[misc]
        jobs.append(lambda box=box: box.add(conf))  # type: ignore[misc]
    answers = at_once(jobs)
    for answer in answers:
        answer.ok()
    news = [answer.ok() for answer in answers[1::2]]
    assert len({address for result in news for address in shapes.addresses(result)}) == 10
    for (gone, _), box, result in zip(old, boxes, news, strict=True):
        assert gone.link() is None
        assert box.addresses() == set(shapes.addresses(result))


@pytest.mark.parametrize("turn", range(3))
def test_f03_several_dels_of_one_container_at_once(world: World, at: At, turn: int) -> None:
    box, conf = world.container(), world.conf(at("1.0.0"))
    result = box.attach(conf)
    for answer in at_once([lambda: box.delete(conf, prev=result)] * 4):
        answer.ok()
    assert box.link() is None


def test_a9_interfaces_of_one_container_at_once(world: World, at: At) -> None:
    """go-cni attaches all networks of one container in parallel."""
    box, conf = world.container(), world.conf(at("1.0.0"))
    names = [f"net{number}" for number in range(6)]
    answers = at_once([lambda name=name: box.add(conf, name) for name in names])  # type: ignore[misc]
    addresses = [set(shapes.addresses(answer.ok())) for answer in answers]
    assert [box.addresses(name) for name in names] == addresses


def test_two_adds_of_one_interface_at_once(world: World, at: At) -> None:
    """At most one succeeds; the other leaves that attachment alone."""
    box, conf = world.container(), world.conf(at("1.0.0"))
    answers = at_once([lambda: box.add(conf)] * 3)
    winners = [answer.ok() for answer in answers if answer.rc == 0]
    assert len(winners) <= 1
    for answer in answers:
        if answer.rc != 0:
            answer.failed()
    if winners:
        assert box.addresses() == set(shapes.addresses(winners[0]))
    box.delete(conf).ok()
    assert box.link() is None


@pytest.mark.timeout(900)
def test_two_hundred_pairs_leave_nothing(fresh: Lab, at: At) -> None:
    """200 ADD/DEL pairs, 20 at a time: the snapshot before equals the one after."""
    world = fresh("masq")
    conf = world.conf(at("1.0.0"), variant="masq")
    world.warm(conf)
    pairs(world, conf, 20, 20)
    before, held = world.snapshot(), idle_descriptors(world)
    pairs(world, conf, 200, 20)
    world.assert_baseline(before, patience=20)
    deadline = time.monotonic() + 20
    while (left := idle_descriptors(world)) > held + 10 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left <= held + 10


def idle_descriptors(world: World) -> int:
    """Open descriptors of the processes on the host, less one for each of their threads: a pool of threads with a
    socket each may still grow to its bound."""
    count = 0
    for pid in netns.processes_in(world.host):
        with contextlib.suppress(FileNotFoundError):  # it has ended meanwhile
            count += len(list(Path(f"/proc/{pid}/fd").iterdir())) - len(list(Path(f"/proc/{pid}/task").iterdir()))
    return count


def pairs(world: World, conf: Json, count: int, together: int) -> None:
    def one(_: int) -> None:
        box = world.container()
        box.delete(conf, prev=box.attach(conf)).ok()
        box.remove()

    with ThreadPoolExecutor(max_workers=together) as pool:
        list(pool.map(one, range(count)))
