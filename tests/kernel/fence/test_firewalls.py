"""Other programs' iptables firewalls that deny, in whatever form: containers get through, and what the administrator
drops on a condition stays dropped. Each saved ruleset in `firewalls/` carries the verdict on each packet.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni.host import iptables

from .lab import CLUSTER4, CLUSTER6, Lab
from .matrix import ALL
from .probes import Ears, ask

FIREWALLS = Path(__file__).parent / "firewalls"
CLUSTERS = (CLUSTER4, CLUSTER6)
LINE = re.compile(r"#: (\S+) (\S+)(?: ([46]))?:(.*)")
BOTH = pytest.mark.parametrize("kind", ["iptables", "iptables-legacy"])
RULESETS = pytest.mark.parametrize("name", sorted(path.stem for path in FIREWALLS.iterdir()))


def verdicts(name: str) -> Iterator[tuple[str, str, frozenset[str]]]:
    """(sender, receiver, which of tcp4, udp4, ping4, tcp6, ... arrive) of each pair; a line may be for one family."""
    by_pair: dict[tuple[str, str], dict[str, list[str]]] = {}
    for line in (FIREWALLS / f"{name}.iptables").read_text().splitlines():
        if match := LINE.fullmatch(line):
            src, dst, version, protocols = match.groups()
            for v in version or "46":
                by_pair.setdefault((src, dst), {})[v] = protocols.split()
    for (src, dst), families in by_pair.items():
        yield src, dst, frozenset(f"{protocol}{v}" for v, protocols in families.items() for protocol in protocols)


def families(name: str, pair: tuple[str, str]) -> set[str]:
    """The address families that the file speaks of for a pair."""
    found: set[str] = set()
    for line in (FIREWALLS / f"{name}.iptables").read_text().splitlines():
        if (match := LINE.fullmatch(line)) and match.groups()[:2] == pair:
            found |= set(match[3] or "46")
    return found


def load(lab: Lab, name: str, kind: str) -> None:
    """The ruleset, in both families; rules with IPv4 addresses in IPv4 alone."""
    four = (FIREWALLS / f"{name}.iptables").read_text()
    six = "\n".join(line for line in four.splitlines() if not re.search(r"\d+\.\d+\.\d+\.\d+", line)) + "\n"
    six = six.replace("-p icmp -m icmp --icmp-type 8", "-p ipv6-icmp")  # neighbour discovery too
    lab.host.run(f"{kind}-restore", stdin=four)
    lab.host.run(f"{kind.replace('iptables', 'ip6tables')}-restore", stdin=six)


def open_forward(lab: Lab) -> bool:
    return lab.host.inside(lambda: iptables.ensure_forward_accept(CLUSTERS).wrote)


def wrong(lab: Lab, ears: Ears, name: str, patient: bool) -> list[str]:
    """The packets whose verdict is another one; `patient`: wait for neighbours that have to be found first."""
    want = {(src, dst): arriving for src, dst, arriving in verdicts(name)}
    open_pairs = {pair for pair, arriving in want.items() if arriving == ALL and patient}
    seen = ask(ears, [(lab.places[src], lab.places[dst]) for src, dst in want], open_pairs)
    found = []
    for pair, arriving in want.items():
        asked = families(name, pair)
        arrived = frozenset(label for label in seen[pair].arrived if label[-1] in asked)
        if arrived != arriving:
            found.append(f"{pair[0]} -> {pair[1]}: {sorted(arrived)} arrived, {sorted(arriving)} expected")
    return found


@BOTH
@RULESETS
def test_containers_get_through_and_conditions_stay(lab: Lab, ears: Ears, name: str, kind: str) -> None:
    load(lab, name, kind)
    assert lab.host.inside(lambda: iptables.forward_denies(CLUSTERS))
    assert wrong(lab, ears, name, patient=False), "the ruleset denies nothing"
    assert open_forward(lab)
    assert not open_forward(lab)
    assert lab.host.inside(lambda: iptables.forward_in_place(CLUSTERS))
    assert wrong(lab, ears, name, patient=True) == []


def test_a_jump_at_the_top_moves_to_its_place(lab: Lab) -> None:
    """An earlier version put it there, in front of what the administrator drops."""
    load(lab, "docker-user", "iptables")
    open_forward(lab)
    at_its_place = lab.host.run("iptables", "-S", "FORWARD")
    comment = ("-m", "comment", "--comment", "zlayer-cni: containers of the overlay", "-j", "ZLAYER-CNI")
    lab.host.run("iptables", "-D", "FORWARD", *comment)
    lab.host.run("iptables", "-I", "FORWARD", "1", *comment)
    assert open_forward(lab)
    assert lab.host.run("iptables", "-S", "FORWARD") == at_its_place
    assert at_its_place.splitlines()[-1].endswith("-j ZLAYER-CNI")


def test_rules_that_drop_on_a_condition_are_named(lab: Lab) -> None:
    load(lab, "docker-user", "iptables")
    open_forward(lab)
    assert lab.host.inside(lambda: iptables.forward_drops(CLUSTERS)) == [
        "iptables -A DOCKER-USER -s 10.200.0.0/16 -d 192.0.2.9/32 -p udp -j DROP"
    ]


@BOTH
@RULESETS
def test_what_was_added_can_be_removed(lab: Lab, name: str, kind: str) -> None:
    def saved() -> list[str]:
        tools = (kind, kind.replace("iptables", "ip6tables"))
        return [lab.host.inside(lambda tool=tool: subprocess.check_output([tool, "-S"], text=True)) for tool in tools]  # type: ignore[misc]

    load(lab, name, kind)
    before = saved()
    open_forward(lab)
    assert saved() != before
    for _ in range(2):
        lab.host.inside(iptables.remove_forward_accept)
    assert saved() == before
