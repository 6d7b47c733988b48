"""A service that fills up, on a real node: it takes a further subnet, gives it back, and says how it is meanwhile."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Callable

import pytest

from tests.blackbox.harness.calls import Answer

from .machine import KIND, Machine, Space
from .scenes import in_order
from .test_storm import QUICK

TWO_SLOTS = "service_cidr: 10.200.64.0/25"
ROOM = 61  # addresses of one /26 for containers
COOLDOWN = 20


def call_all(on: Machine, verb: str, spaces: list[Space], numbers: range) -> dict[int, Answer]:
    """The call for each number, by four at a time. A number is a container with one interface."""
    answers: dict[int, Answer] = {}

    def some(part: list[int]) -> None:
        for n in part:
            answers[n] = on.call(verb, on.conf(), f"c{n}", spaces[n % len(spaces)].path, f"eth{n}")

    crew = [threading.Thread(target=some, args=(list(numbers)[k::4],)) for k in range(4)]
    for each in crew:
        each.start()
    for each in crew:
        each.join()
    return answers


def gateways(on: Machine) -> set[str]:
    """The addresses of the service's bridge; without one, the subnets that are set up."""
    if KIND == "routed":
        return {route["dst"] for route in on.ip("-4", "route") if route.get("type") == "unreachable"}
    return {
        f"{info['local']}/{info['prefixlen']}"
        for link in on.ip("addr", "show", "type", "bridge")
        for info in link["addr_info"]
        if info["family"] == "inet"
    }


@pytest.mark.timeout(600)
def test_a_service_that_outgrows_its_subnet(one_form: str, boot: Callable[..., Machine]) -> None:
    """The sixty-second container has a further subnet, with its gateway, its rules and a way to the first; the last of
    them takes all that along."""
    on = boot(one_form, f"address_cooldown: 1\n{TWO_SLOTS}")
    on.program.tune(**QUICK)
    on.start_daemon()
    spaces = [Space(on) for _ in range(13)]
    for each in call_all(on, "ADD", spaces, range(ROOM)).values():
        each.ok()
    before = gateways(on)
    assert len(before) == 1
    late = {n: each.ok() for n, each in call_all(on, "ADD", spaces, range(ROOM, ROOM + 5)).items()}
    (further,) = gateways(on) - before
    subnet = ipaddress.ip_interface(further).network
    assert all(ipaddress.ip_interface(said["ips"][0]["address"]).ip in subnet for said in late.values())
    # Two containers with one interface each, to see packets go from the further subnet to the first and back.
    alone, one = Space(on), Space(on)
    first = on.call("ADD", on.conf(), "further", alone.path).ok()
    assert ipaddress.ip_interface(first["ips"][0]["address"]).ip in subnet
    on.call("DEL", on.conf(), "c0", spaces[0].path, "eth0").ok()
    time.sleep(1.5)  # its address rests
    second = on.call("ADD", on.conf(), "one", one.path).ok()
    assert ipaddress.ip_interface(second["ips"][0]["address"]).ip not in subnet
    target = second["ips"][0]["address"].partition("/")[0]
    assert "1 received" in alone.sh(f"ping -n -q -c 1 -W 5 {target}")
    for cid, space in (("further", alone), ("one", one)):
        on.call("DEL", on.conf(), cid, space.path).ok()
    for each in call_all(on, "DEL", spaces, range(ROOM, ROOM + 5)).values():
        each.ok()
    end = time.monotonic() + 15
    while gateways(on) != before or words_of(on, subnet):
        assert time.monotonic() < end, (gateways(on), words_of(on, subnet))
        time.sleep(0.2)
    for each in call_all(on, "DEL", spaces, range(ROOM)).values():
        each.ok()
    in_order(on, within=15.0)


def words_of(on: Machine, subnet: ipaddress.IPv4Network | ipaddress.IPv6Network) -> list[str]:
    """Whatever the rule sets and routes say of addresses of the subnet."""
    found = []
    for word in on.sh("nft list ruleset; ip route show table all").split():
        try:
            if ipaddress.ip_interface(word.strip("{},")).ip in subnet:
                found.append(word)
        except ValueError:
            continue
    return found


@pytest.mark.timeout(600)
def test_a_full_pool_says_so_and_recovers(one_form: str, boot: Callable[..., Machine]) -> None:
    """Every address in use: a plain error. One is cooling down: try again. STATUS says no to both, and yes again."""
    on = boot(one_form, f"address_cooldown: {COOLDOWN}\n{TWO_SLOTS}")
    on.program.tune(**QUICK)
    on.start_daemon()
    spaces = [Space(on) for _ in range(13)]
    for each in call_all(on, "ADD", spaces, range(2 * ROOM)).values():
        each.ok()
    on.call("ADD", on.conf(), "more", spaces[0].path, "more").failed(104)
    on.call("STATUS", on.conf()).failed(50)
    on.call("DEL", on.conf(), "c7", spaces[7].path, "eth7").ok()
    begun = time.monotonic()
    on.call("ADD", on.conf(), "more", spaces[0].path, "more").failed(11)
    on.call("STATUS", on.conf()).failed(50)
    while (answer := on.call("ADD", on.conf(), "more", spaces[0].path, "more")).rc:
        answer.failed(11)
        assert time.monotonic() - begun < COOLDOWN + 20
        time.sleep(0.5)
    assert time.monotonic() - begun > COOLDOWN - 2
    held: set[str] = set()
    for each in on.ask("attachments"):
        assert held.isdisjoint(each["addresses"])
        held |= set(each["addresses"])
    assert len(held) == 2 * ROOM
