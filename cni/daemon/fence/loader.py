"""Runs the fence's texts, and knows what of the kernel is as it should be.

nftables counts its transactions (the generation). So what was seen to be right stays right while only transactions of
our own were counted, and a notification about one of those needs no look. One thread at a time; the barrier's lock
sees to that.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from cni.daemon.fence import compare, elements, expected, ruleset
from cni.daemon.fence.compare import DesiredState, Listing
from cni.daemon.fence.expected import Fault
from cni.daemon.fence.model import TABLE, FenceBridge, FenceNode, FencePort, chain_of
from cni.daemon.fence.rules import SETS
from cni.errors import FenceFailed
from cni.host import nft_elements
from cni.host.nft import Nft, rules_of
from cni.host.nft_elements import Change
from cni.host.nft_rules import Tables, TableSeen

log = logging.getLogger(__name__)

OWN = 4096  # generations of our own that are remembered: a notification comes within milliseconds of its transaction
_NAME = re.compile(r"\w{1,64}", re.ASCII)  # sets of ours: a name may be any text, and this one came from others
_KINDS = {(family, name): kind for family, kind, name, _ in SETS}
READS = 5  # times that rules are read while others change them, before they count as changed


class Loader:
    """The tables in the kernel."""

    def __init__(self, nft: Nft) -> None:
        self.nft = nft
        self.refused: dict[str, str] = {}
        """Which records of other nodes could not be loaded, and why."""
        self._own: deque[int] = deque(maxlen=OWN)
        self._commits = 0
        self._rules_at = -1  # the generation at which the rules were right; only we changed anything since
        self._all_at = -1  # the same of rules and elements
        self._shape: tuple[bytes, ...] | None = None  # the tables' at some time when the rules were right
        self._learned: tuple[str, Tables] | None = None
        self._expected: tuple[str, tuple[str, ...], dict[str, TableSeen]] | None = None
        self._packed: dict[FencePort | FenceBridge, bytes] = {}

    # --- transactions ------------------------------------------------------------------------------------------------

    def run(self, *parts: str | Change) -> None:
        """One transaction. Raises FenceFailed."""
        if any(parts):
            before = self.nft.generation()
            try:
                self.nft.run(*parts)
            except FenceFailed:
                self._all_at = -1  # what should be there is not: the next look compares everything
                raise
            self._count(before)

    def _count(self, before: int) -> None:
        now = self.nft.generation()
        if now != before + 1:
            return  # nothing was changed, or somebody else changed something at the same time
        self._commits += 1
        self._own.append(now)
        self._rules_at = now if self._rules_at == before else self._rules_at
        self._all_at = now if self._all_at == before else self._all_at

    def made(self, generation: int) -> bool:
        """Whether the transaction with that number was ours."""
        return generation in self._own

    def is_settled(self) -> bool:
        """Whether rules and elements were right, and nobody else changed anything since. Raises FenceFailed."""
        return self.nft.generation() == self._all_at

    def mark(self) -> tuple[int, int]:
        """A point in time, for `settle`."""
        return self.nft.generation(), self._commits

    def settle(self, since: tuple[int, int]) -> None:
        """All is right, if only we changed anything since."""
        now = self.nft.generation()
        if now - since[0] == self._commits - since[1]:
            self._all_at = self._rules_at = now

    # --- rules -------------------------------------------------------------------------------------------------------

    def rules_are_right(self) -> bool:
        """Whether the rules were right, and nobody else changed anything since. Raises FenceFailed."""
        return self.nft.generation() == self._rules_at

    def faults(self, wanted: DesiredState) -> list[Fault]:
        """What is wrong with the rules; cheap while nobody changed them. Raises FenceFailed."""
        generation = self.nft.generation()
        if generation == self._rules_at:
            return []
        shape = self.nft.shape(TABLE)
        if shape is not None and shape == self._shape:
            self._rules_at = generation
            return []
        found = [fault for fault in self._differences(wanted) if not expected.is_stale(fault)]
        if not found and self.nft.generation() == generation:
            self._rules_at, self._shape = generation, shape
        return found

    def _differences(self, wanted: DesiredState) -> list[Fault]:
        seen = None
        for _ in range(READS):
            seen = self.nft.rules(TABLE)
            if seen is not None:
                break
        should = self._should(wanted)
        if should is None:  # no namespace to learn in: the rules' names have to do
            listing: Listing = {family: self.nft.list_table(family, TABLE, terse=True) for family in ruleset.FAMILIES}
            return [Fault("", "", text) for text in compare.faults(listing, wanted)]
        return expected.differences(seen, should)

    def _should(self, wanted: DesiredState) -> dict[str, TableSeen] | None:
        """The tables as they should be; None where that cannot be learned."""
        text, networks = expected.scratch_text(wanted.node, wanted.edges), tuple(wanted.networks())
        if self._learned is None or self._learned[0] != text:
            try:
                self._learned = (text, rules_of(text, TABLE))
            except (OSError, FenceFailed) as error:
                log.warning("the bodies of the fence's rules cannot be compared now: %s", error)
                return None
        if self._expected is None or self._expected[:2] != (text, networks):
            self._expected = (text, networks, expected.expand(self._learned[1], networks))
        return self._expected[2]

    def mend_rules(self, wanted: DesiredState) -> bool:
        """Make the rules right, this node's first and without what others say; True if something had to be changed.

        Where a table was gone its elements are put in as well. Until then every port is closed, and what lies behind
        the tunnels is known last: an address there that is in no set would count as one of the flat mesh.
        Raises FenceFailed; what cannot be done for others is in `refused`.
        """
        since = self.mark()
        faults = self._differences(wanted)
        real = [fault for fault in faults if not expected.is_stale(fault)]
        if not real:
            self._rules_at = self.nft.generation()
            return self._forget_markers(faults)
        local = wanted.local()
        far = frozenset(chain_of(remote.network) for remote in wanted.remotes) - {
            chain_of(network) for network in (None, *local.networks())
        } | expected.chains_of_edges(wanted.edges)
        ours = [fault for fault in real if not fault.place.startswith(tuple(far) or ("\0",))]
        empty = any(fault.text.endswith(" is gone") and not _is_chain(fault) for fault in ours)
        if any(fault.rebuild for fault in ours):
            self.run(compare.whole(replace(local, node=_near(local.node))))
        elif ours:
            node = _near(local.node) if empty else local.node
            self._reload(replace(local, node=node), ours)
        else:
            empty = False
        filled = any(fault.rebuild for fault in ours) or (empty and self._refill(local))
        if empty or filled or len(ours) < len(real):
            self.add_records(compare.records(None, wanted))
            self.run(_far(wanted.node))
        if filled and not self.refused:
            self.settle(since)
        self._forget_markers(faults)
        return True

    def _reload(self, local: DesiredState, faults: list[Fault]) -> None:
        """The rules anew, and no membership lost; where that is refused, everything anew."""
        hooks = [
            f"flush chain {f.family} {TABLE} {f.place}\ndelete chain {f.family} {TABLE} {f.place}\n"
            for f in faults
            if f.hook
        ]
        text = "".join([*hooks, ruleset.base(local.node), *(ruleset.create_network(name) for name in local.networks())])
        try:
            self.run(text)
        except FenceFailed as error:
            log.debug("the fence's rules are loaded from the ground up: %s: %s", error.msg, error.details)
            self.run(compare.whole(replace(local, node=_near(local.node))))
            self.run(_far(local.node))

    def _forget_markers(self, faults: list[Fault]) -> bool:
        stale = [f for f in faults if expected.is_stale(f) and f.place.startswith(ruleset.MARKER)]
        self.run("".join(ruleset.forget_marker(fault.family, fault.place) for fault in stale))
        return bool(stale)

    # --- elements ----------------------------------------------------------------------------------------------------

    def prime(self, local: DesiredState, most: int) -> bool:
        """Have the messages ready that put everything of this node back: 0.25 ms for each bridge or port that is new,
        and at most so many of those; whether that were all."""
        known, self._packed = self._packed, {}
        every: list[FenceBridge | FencePort] = [*local.bridges, *local.ports]
        for each in every:
            packed = known.get(each)
            if packed is None and most > 0:
                most -= 1
                found = elements.of_bridge(each) if isinstance(each, FenceBridge) else elements.of_port(each)
                packed = nft_elements.pack(elements.change(add=found))
            if packed is not None:
                self._packed[each] = packed
        return len(self._packed) == len(every)

    def _refill(self, local: DesiredState) -> bool:
        """Put in everything of this node; False if some of it is there otherwise."""
        self.prime(local, len(local.bridges) + len(local.ports))
        before = self.nft.generation()
        try:
            self.nft.refill(self._packed.values())
        except FenceFailed as error:
            log.debug("the fence's sets are compared one by one: %s: %s", error.msg, error.details)
            return False
        self._count(before)
        return True

    def mend_sets(self, wanted: DesiredState, sets: frozenset[tuple[str, str]]) -> bool:
        """Make these sets hold what they should; True if something had to be changed. Raises FenceFailed."""
        listing: dict[str, dict[str, list[object]]] = {family: {"nftables": []} for family in ruleset.FAMILIES}
        for family, name in sorted(each for each in sets if _NAME.fullmatch(each[1])):
            found = self.nft.list_set(_KINDS.get((family, name), "set"), family, TABLE, name)
            listing[family]["nftables"] += found["nftables"] if found else []
        change = compare.mend_sets(listing, wanted, sets)
        self.run(change)
        return bool(change)

    def mend_elements(self, listing: Listing, wanted: DesiredState) -> bool:
        """Make all elements right, this node's first; True if something had to be changed. Raises FenceFailed."""
        parts = compare.compare(listing, wanted, wanted.local())
        self.run(*parts)
        anew = any(isinstance(part, str) and "add table " in part for part in parts)  # the rules were loaded again
        records = compare.records(None if anew else listing, wanted)
        self.add_records(records)
        return bool(parts or records)

    def add_records(self, records: Iterable[compare.Record]) -> None:
        """What others say, in transactions of its own: all at once, and where that is refused one by one. Never raises
        FenceFailed: what is refused is in `refused`."""
        records, self.refused = list(records), {}
        try:
            self.run("".join(each.rules for each in records))
            self.run(elements.change(add=(member for each in records for member in each.members.add)))
            return
        except FenceFailed:
            pass
        for whose, rules, members in records:
            try:
                self.run(rules, members)
            except FenceFailed as error:
                self.refused[whose] = f"{whose}: {error.msg}: {error.details}"
                closed = [member for member in members.add if member.set.startswith("closed")]
                with contextlib.suppress(FenceFailed):
                    self.run(elements.change(add=closed))  # of no network here, and not of the flat mesh either


def _near(node: FenceNode) -> FenceNode:
    return replace(node, far=())


def _far(node: FenceNode) -> Change:
    """What lies behind the tunnels."""
    return elements.change(add=(each for each in elements.of_node(node) if each.set.startswith("far")))


def _is_chain(fault: Fault) -> bool:
    return fault.text.startswith("chain ")
