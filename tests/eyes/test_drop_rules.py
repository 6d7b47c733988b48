"""Every rule that drops, provoked by the attacks of the fence's own tests: its exact counter and its exact line."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

import pytest

from cni.daemon.fence import compare, drop_log, packet_text, ruleset
from cni.daemon.fence.desired import DesiredState
from cni.daemon.fence.drop_log import Place
from cni.daemon.fence.model import TABLE
from cni.daemon.fence.rule_comparison import RuleComparison
from cni.daemon.fence.rules import Chain, network_chains
from cni.host.nflog import Logged, PacketLog
from cni.host.nft_elements import Change
from tests.kernel.fence import (  # noqa: F401 - they register
    attacks,
    attacks_connected,
    attacks_edge,
    attacks_flows,
    attacks_hairpin,
    attacks_handed,
    attacks_leaving,
    attacks_mesh,
    attacks_neighbours,
    attacks_odd,
    attacks_routed,
    attacks_source,
    attacks_unbridged,
)
from tests.kernel.fence.lab import NETWORKS, ROUTED, Lab

NAMES = sorted(attacks.ATTACKS.keys() - (attacks.OF_BRIDGES if ROUTED else {}))


class SampledLab(Lab):
    """A lab whose rules that drop are logged, also those that an attack loads anew."""

    sampling, loads = False, 0

    def run(self, text: str | Change) -> None:
        super().run(text)
        if self.sampling and isinstance(text, str):
            self.loads += 1
            self.nft.run(whole_sample(self))


@contextlib.contextmanager
def opened() -> Iterator[SampledLab]:
    """A lab with the fence in force."""
    lab = SampledLab()
    try:
        lab.load()
        yield lab
    finally:
        lab.close()


def listing(lab: Lab) -> compare.Listing:
    return {family: lab.nft.list_table(family, TABLE, terse=True) for family in ruleset.FAMILIES}


def chains(lab: Lab) -> list[Chain]:
    return [*ruleset.chains(lab.node), *(chain for name in NETWORKS for chain in network_chains(name))]


def whole_sample(lab: Lab) -> str:
    """The log rules, with a rate that no attack reaches: every packet has its line."""
    return drop_log.missing(listing(lab), chains(lab)).replace(
        f"rate {drop_log.RATE}/second burst {drop_log.RATE} ", "rate 2000/second burst 2000 "
    )


@contextlib.contextmanager
def sampled(lab: SampledLab) -> Iterator[PacketLog]:
    """The log rules in force, and what they log."""
    log = lab.host.inside(lambda: PacketLog(drop_log.GROUP, drop_log.SNAPLEN))
    lab.nft.run(whole_sample(lab))
    lab.sampling = True
    try:
        yield log
    finally:
        lab.sampling = False
        lab.nft.run(drop_log.removal(listing(lab)))
        log.close()


def read_all(log: PacketLog) -> list[Logged]:
    """What is logged, until nothing came for longer than the kernel gathers packets (0.1 s)."""
    found: list[Logged] = []
    while more := log.read(0.13):
        found += more
    return found


Drops = dict[tuple[str, str, str], tuple[int, int]]


def settled(lab: Lab, log: PacketLog) -> tuple[Drops, list[Logged]]:
    """The counters and all lines so far, at a time at which no packet was dropped between the two."""
    lines: list[Logged] = []
    after = compare.drops(listing(lab))
    while True:
        before = after
        lines += read_all(log)
        after = compare.drops(listing(lab))
        if after == before:
            return after, lines


OF_ROUTED = {
    "inet/from_container/DHCP server, routed leg",
    "inet/from_container/DHCPv6 server, routed leg",
    "inet/from_container/IPv6 routing header, routed leg",
    "inet/prerouting/port of our name, routed",
}
"""The rules that only a node without bridges needs: `scripts/test eyes` runs this file there too."""


@pytest.mark.parametrize("nf_call", [1] if ROUTED else [0, 1])
def test_every_attack_has_its_lines(nf_call: int) -> None:
    """For each attack: the rules whose counters grow are those that the lines name, packet for packet; and over all
    attacks every rule that drops was seen."""
    seen: set[Place] = set()
    with opened() as lab:
        lab.nf_call(nf_call)
        with sampled(lab) as log:
            before, _ = settled(lab, log)
            for name in NAMES:
                loads = lab.loads
                assert attacks.run(lab, name) == [], name
                after, lines = settled(lab, log)
                assert log.take_lost() == 0
                grown = {Place(*key): value[0] - before.get(key, (0, 0))[0] for key, value in after.items()}
                counted = {place: number for place, number in grown.items() if number > 0}
                before = after
                said = Counter(place for line in lines if (place := drop_log.place_of(line.prefix)))
                for line in lines:
                    ends = packet_text.read(line.ethertype, line.link, line.payload)
                    assert ends.source and ends.destination and ends.protocol, (name, line)
                if lab.loads > loads:
                    seen |= set(said)  # the attack loads chains anew, and their counters begin again
                else:
                    assert said == counted, name
                    seen |= set(counted)
        every = {Place(c.family, c.name, r.name) for c in chains(lab) for r in c.rules if r.verdict == "drop"}
    missed = {drop_log.prefix(place) for place in every - seen if not place.chain.startswith("net_")}
    if ROUTED:
        assert OF_ROUTED & missed == set()
    else:
        assert missed == OF_ROUTED
    of_networks = {(place.family, place.rule) for place in every if place.chain.startswith("net_")}
    of_networks -= {(place.family, place.rule) for place in seen if place.chain.startswith("net_")}
    assert {family for family, _ in of_networks} <= ({"bridge"} if ROUTED else set())


def test_a_comparison_with_the_desired_rules_does_not_see_them() -> None:
    with opened() as lab:
        comparison = RuleComparison()

        def differences() -> list[str]:
            tables = comparison.differences(lab.nft, desired)[0]
            return [fault.text for fault in tables]

        desired = DesiredState(
            lab.node,
            ports=tuple(place.port for place in lab.places.values() if place.port and place.kind == "container"),
        )
        assert lab.host.inside(differences) == []
        with sampled(lab):
            assert lab.host.inside(differences) != []  # without a reader a log rule is a difference
            comparison.expect_log_rules(True)
            assert lab.host.inside(differences) == []
            assert compare.faults(listing(lab), desired) == []
            # A rule of that name that does more than log is one all the same.
            lab.nft.run(f'insert rule inet {TABLE} forward accept comment "{drop_log.NAME}"\n')
            assert lab.host.inside(differences) != []
            assert compare.faults(listing(lab), desired) != []


def test_removed_rules_leave_the_counters() -> None:
    with opened() as lab:
        with sampled(lab) as log:
            attacks.run(lab, next(iter(NAMES)))
            now, _ = settled(lab, log)
            counted = {key: value for key, value in now.items() if value[0]}
            assert counted
        after = compare.drops(listing(lab))
        assert [key for key in counted if after[key] < counted[key]] == []  # containers go on to send reports
        assert drop_log.removal(listing(lab)) == ""
