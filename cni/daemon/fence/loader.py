"""Runs the fence's nft texts, and tracks what of the kernel's state is known to be right.

nftables counts its transactions (the generation). A state that was seen to be right stays right while only our own
transactions were counted, and a notification about one of those needs no check. One thread at a time; the lock of
`FenceTables` ensures that.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from cni.daemon.durations import Durations
from cni.daemon.fence import compare, drop_log, elements, expected, replacement, ruleset
from cni.daemon.fence.compare import Listing
from cni.daemon.fence.desired import DesiredState
from cni.daemon.fence.fault import Fault
from cni.daemon.fence.model import TABLE, FenceBridge, FenceNode, FencePort, chain_of
from cni.daemon.fence.policy_book import PolicySet
from cni.daemon.fence.policy_chains import MAPS
from cni.daemon.fence.rule_comparison import RuleComparison
from cni.daemon.fence.rules import SETS
from cni.errors import FenceFailed
from cni.host import nft_contents, nft_elements
from cni.host.nft import Nft
from cni.host.nft_elements import Change, Element
from cni.host.nft_rules import Tables

log = logging.getLogger(__name__)

OWN = 4096  # own generations that are remembered: a notification comes within milliseconds of its transaction
_NAME = re.compile(r"\w{1,64}", re.ASCII)  # our set names; a notified name may be any text, and other programs chose it
_KINDS = {(family, name): kind for family, kind, name, _ in (*SETS, *MAPS)}


class Loader:
    """The tables in the kernel."""

    def __init__(self, nft: Nft, took: Durations) -> None:
        """`took` counts the transactions by what they change: "elements" alone, or "rules"."""
        self.nft, self._took = nft, took
        self.refused: dict[str, str] = {}
        """Which records of other nodes could not be loaded, and why."""
        self._own: deque[int] = deque(maxlen=OWN)
        self._commits = 0
        self._rules_at = -1  # the generation at which the rules were right; only this daemon changed anything since
        self._all_at = -1  # the same for rules and elements
        self._shape: tuple[bytes, ...] | None = None  # the tables' shape at a time when the rules were right
        self._exact_at = -1  # the generation at which no rule, chain or set was missing, wrong or left over
        self._comparison = RuleComparison()
        self._sampled_at = -1  # the generation at which every log rule was there
        self._packed: dict[FencePort | FenceBridge | PolicySet, bytes] = {}

    # --- transactions ------------------------------------------------------------------------------------------------

    def run(self, *parts: str | Change) -> None:
        """Runs the parts as one transaction. Raises FenceFailed."""
        if any(parts):
            before, began = self.nft.generation(), time.monotonic()
            try:
                self.nft.run(*parts)
            except FenceFailed:
                self._all_at = -1  # an element may be missing: the next load compares everything
                raise
            kind = "rules" if any(isinstance(part, str) and part for part in parts) else "elements"
            self._took.note((kind,), time.monotonic() - began)
            self._count(before)

    def _count(self, before: int) -> None:
        now = self.nft.generation()
        if now != before + 1:
            return  # nothing was changed, or another program changed nftables at the same time
        self._commits += 1
        self._own.append(now)
        self._rules_at = now if self._rules_at == before else self._rules_at
        self._all_at = now if self._all_at == before else self._all_at

    def made(self, generation: int) -> bool:
        """Whether this daemon made the transaction with that generation."""
        return generation in self._own

    def is_settled(self) -> bool:
        """Whether rules and elements were right, and only this daemon changed nftables since. Raises FenceFailed."""
        return self.nft.generation() == self._all_at

    def mark(self) -> tuple[int, int]:
        """The current generation and the count of own transactions, for `settle`."""
        return self.nft.generation(), self._commits

    def settle(self, since: tuple[int, int]) -> None:
        """Records that the elements are right, and with them everything, if the rules are known to be right and only
        this daemon changed nftables since the mark."""
        now = self._unless_others(since)
        if now is not None and self._rules_at == now:
            self._all_at = now

    def _unless_others(self, since: tuple[int, int]) -> int | None:
        """The present generation, if only this daemon changed nftables since the mark."""
        now = self.nft.generation()
        return now if now - since[0] == self._commits - since[1] else None

    def settle_whole(self, since: tuple[int, int]) -> None:
        """`settle`, where what others publish is in force as well: nothing of it is refused."""
        self.refused = {}
        self.settle(since)

    # --- rules -------------------------------------------------------------------------------------------------------

    def rules_are_right(self) -> bool:
        """Whether the rules were right, and only this daemon changed nftables since. Raises FenceFailed."""
        return self.nft.generation() == self._rules_at

    def faults(self, desired: DesiredState) -> list[Fault]:
        """What is wrong with the rules; cheap while no other program changed them. Raises FenceFailed."""
        generation = self.nft.generation()
        if generation == self._rules_at:
            return []
        shape = self.nft.shape(TABLE)
        if shape is not None and shape == self._shape:
            self._rules_at = generation
            return []
        faults = [fault for fault in self._comparison.differences(self.nft, desired)[0] if not expected.is_stale(fault)]
        if not faults and self.nft.generation() == generation:
            self._rules_at, self._shape = generation, shape
        return faults

    def mend_rules(self, desired: DesiredState) -> bool:
        """Repairs the rules; True if anything had to be changed.

        Where tables of another version are in force, one transaction changes them into this version's with all that is
        known. Otherwise this node's rules come first, without what others publish. Where a table is gone every port is
        closed until its elements are added, and the CIDRs behind the tunnels come last: an address there that is in no
        set would count as the flat mesh's.
        Raises FenceFailed; what could not be loaded of others' records is in `refused`.
        """
        since = self.mark()
        faults, seen = self._comparison.differences(self.nft, desired)
        real = [fault for fault in faults if not expected.is_stale(fault)]
        if not real:
            # A transaction of another program after the reading may have switched the tables off.
            self._rules_at = since[0] if self.nft.generation() == since[0] else -1
            self._exact_at = since[0] if not faults else -1
            return self._forget_markers(faults)
        ours = _of_this_node(real, desired)
        if any(fault.structure for fault in ours):
            complete = self._replace(desired, seen, ours)
        elif any(fault.missing for fault in ours):
            complete = self._create(desired, ours)
        else:
            complete = self._reload(desired, ours, others=len(ours) < len(real))
        now = self._unless_others(since)
        self._rules_at = now if now is not None else -1
        if complete and not self.refused:
            self.settle(since)
        self._forget_markers(faults)
        return True

    def _replace(self, desired: DesiredState, seen: Tables | None, faults: list[Fault]) -> bool:
        """Turns tables of another version into this version's; True if no element of theirs is left."""
        chains = {family: tuple(table.chains) for family, table in (seen or {}).items() if table is not None}
        text = replacement.in_place(desired, chains, faults) if chains else ""
        if not text or not self._accepts(text):
            return self._rebuild(desired)
        self.refused = {}
        return False

    def _create(self, desired: DesiredState, faults: list[Fault]) -> bool:
        """Creates a table that is gone: rules, this node's elements, others' records, the CIDRs behind the tunnels."""
        local = desired.local()
        if not self._accepts(replacement.rules(replace(local, node=_near(local.node)), faults)):
            return self._rebuild(desired)
        filled = self._refill(local)
        self._add_others(desired)
        return filled

    def _reload(self, desired: DesiredState, faults: list[Fault], others: bool) -> bool:
        """Loads this node's rules anew, and with `others` what others publish; True if all of it was made anew."""
        if faults and not self._accepts(replacement.rules(desired.local(), faults)):
            return self._rebuild(desired)
        if others:
            self._add_others(desired)
        return False

    def _rebuild(self, desired: DesiredState) -> bool:
        """Deletes the tables and makes them anew with all they hold in one transaction. Where that is refused, this
        node's part alone, then what others publish. Always True.
        """
        self.refused = {}
        if not self._accepts(replacement.whole(desired)):
            local = desired.local()
            self.run(replacement.whole(replace(local, node=_near(local.node))))
            self._add_others(desired)
        return True

    def _accepts(self, text: str) -> bool:
        """Runs the text; False if it is refused."""
        try:
            self.run(text)
        except FenceFailed as error:
            log.debug("the fence's tables are loaded in another way: %s: %s", error.msg, error.details)
            return False
        return True

    def _add_others(self, desired: DesiredState) -> None:
        self.add_records(compare.records(None, desired))
        self.run(_far(desired.node))

    def _forget_markers(self, faults: list[Fault]) -> bool:
        stale = [f for f in faults if expected.is_stale(f) and f.place.startswith(ruleset.MARKER)]
        self.run("".join(ruleset.forget_marker(fault.family, fault.place) for fault in stale))
        return bool(stale)

    # --- log rules ---------------------------------------------------------------------------------------------------

    def sample(self, desired: DesiredState) -> None:
        """Adds the log rules that are missing; cheap while no rule was added since the last call. Raises
        FenceFailed."""
        if self._sampled_at == self.nft.generation():
            return
        self._comparison.expect_log_rules(True)
        self.run(drop_log.missing(self._terse(), desired.chains()))
        self._sampled_at = self.nft.generation()

    def end_sample(self) -> None:
        """Deletes every log rule. Idempotent. Raises FenceFailed."""
        self._sampled_at = -1
        self.run(drop_log.removal(self._terse()))
        self._comparison.expect_log_rules(False)

    def _terse(self) -> Listing:
        return {family: self.nft.list_table(family, TABLE, terse=True) for family in ruleset.FAMILIES}

    # --- elements ----------------------------------------------------------------------------------------------------

    def holds(self, desired: DesiredState) -> bool:
        """Whether the tables hold exactly what is desired, by the kernel's own encoding: the usual case at a start. If
        not, `mend_elements` finds what differs, at ten times the cost. Raises FenceFailed."""
        if self._exact_at < 0 or self.nft.generation() != self._exact_at:
            return False
        return self.nft.contents(TABLE) == nft_contents.packed(desired.elements())

    def prime(self, local: DesiredState, most: int) -> bool:
        """Packs the messages that restore everything of this node: 0.25 ms for each bridge or port that is new, or for
        each set of policies that has changed; at most `most` of those per call. True if all are packed.
        """
        earlier, self._packed = self._packed, {}
        devices: list[FenceBridge | FencePort | PolicySet] = [*local.bridges, *local.policies.sets, *local.ports]
        for device in devices:
            packed = earlier.get(device)
            if packed is None and most > 0:
                most -= 1
                packed = nft_elements.pack(elements.change(add=_elements_of(device)))
            if packed is not None:
                self._packed[device] = packed
        return len(self._packed) == len(devices)

    def _refill(self, local: DesiredState) -> bool:
        """Adds everything of this node; False if the kernel refuses, since some of it is there with another verdict."""
        self.prime(local, len(local.bridges) + len(local.ports) + len(local.policies.sets))
        before = self.nft.generation()
        try:
            self.nft.refill(self._packed.values())
        except FenceFailed as error:
            log.debug("the fence's sets are compared element by element: %s: %s", error.msg, error.details)
            return False
        self._count(before)
        return True

    def mend_sets(self, desired: DesiredState, sets: frozenset[tuple[str, str]]) -> bool:
        """Makes these sets hold what they should; True if anything had to be changed. Raises FenceFailed."""
        listing: dict[str, dict[str, list[object]]] = {family: {"nftables": []} for family in ruleset.FAMILIES}
        for family, name in sorted(key for key in sets if _NAME.fullmatch(key[1])):
            content = self.nft.list_set(_KINDS.get((family, name), "set"), family, TABLE, name)
            listing[family]["nftables"] += content["nftables"] if content else []
        change = compare.mend_sets(listing, desired, sets)
        self.run(change)
        return bool(change)

    def mend_elements(self, listing: Listing, desired: DesiredState) -> bool:
        """Makes all elements right, this node's first; True if anything had to be changed. Raises FenceFailed."""
        if compare.must_rebuild(listing):
            self._rebuild(desired)
            return True
        parts = compare.compare(listing, desired, desired.local())
        self.run(*parts)
        anew = any(isinstance(part, str) and "add table " in part for part in parts)  # the rules were loaded again
        records = compare.records(None if anew else listing, desired)
        self.add_records(records)
        return bool(parts or records)

    def add_records(self, records: Iterable[compare.Record]) -> None:
        """Loads what others publish, in transactions of its own: all at once, and where that is refused one by one.
        Never raises FenceFailed: what is refused is in `refused`.
        """
        records, self.refused = list(records), {}
        try:
            self.run("".join(record.rules for record in records))
            self.run(elements.change(add=(member for record in records for member in record.members.add)))
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
                    self.run(
                        elements.change(add=closed)
                    )  # a member of no network here, and not of the flat mesh either


def _elements_of(device: FenceBridge | FencePort | PolicySet) -> list[Element]:
    if isinstance(device, PolicySet):
        return device.elements()
    return elements.of_bridge(device) if isinstance(device, FenceBridge) else elements.of_port(device)


def _near(node: FenceNode) -> FenceNode:
    return replace(node, far=())


def _far(node: FenceNode) -> Change:
    """The CIDRs behind the tunnels."""
    return elements.change(add=(element for element in elements.of_node(node) if element.set.startswith("far")))


def _of_this_node(faults: list[Fault], desired: DesiredState) -> list[Fault]:
    """The faults but those of the chains that only others' records need."""
    local = {chain_of(network) for network in (None, *desired.local().networks())}
    others = {chain_of(remote.network) for remote in desired.remotes} - local
    names = (*others, *expected.chains_of_edges(desired.edges))
    return [fault for fault in faults if not (names and fault.place.startswith(names))]
