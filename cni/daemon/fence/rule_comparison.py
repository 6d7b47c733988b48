"""Compares the rules in the kernel with the desired ones, body by body."""

from __future__ import annotations

import logging
from dataclasses import replace

from cni.daemon.fence import compare, drop_log, expected, ruleset
from cni.daemon.fence.bridge import trial_of_bridge_names
from cni.daemon.fence.compare import Listing
from cni.daemon.fence.desired import DesiredState
from cni.daemon.fence.fault import Fault
from cni.daemon.fence.model import TABLE
from cni.errors import FenceFailed
from cni.host.nft import Nft
from cni.host.nft_rules import RuleSeen, Tables, TableSeen
from cni.host.nft_scratch import accepts, rules_of

log = logging.getLogger(__name__)

READS = 5  # attempts to read the rules while other programs change them, before the rules count as changed


def has_bridge_names() -> bool:
    """Whether the kernel's nftables can match a frame by its bridge, so that a port of no attachment is closed whatever
    its name is.
    """
    try:
        return accepts(trial_of_bridge_names())
    except OSError as error:
        log.warning("ports of other names on the overlay's bridges are not closed: %s", error)
        return False


class RuleComparison:
    """The comparison, with the kernel's encoding of the desired rules, which is learned once for each text."""

    def __init__(self) -> None:
        self._sampled = False
        self._learned: tuple[str, Tables] | None = None
        self._expected: tuple[str, tuple[str, ...], dict[str, TableSeen]] | None = None

    def expect_log_rules(self, sampled: bool) -> None:
        """Whether log rules (drop_log.py) may be there; until then they are a difference."""
        self._sampled = sampled

    def differences(self, nft: Nft, desired: DesiredState) -> tuple[list[Fault], Tables | None]:
        """What is wrong with the rules, and the tables as they are; None if they could not be read."""
        seen = None
        for _ in range(READS):
            seen = nft.rules(TABLE)
            if seen is not None:
                break
        should = self._should(desired)
        if should is None:  # without a scratch namespace, the rules are compared by name only
            listing: Listing = {family: nft.list_table(family, TABLE, terse=True) for family in ruleset.FAMILIES}
            gone = any(table is None for table in listing.values())
            return [Fault("", "", text, missing=gone) for text in compare.faults(listing, desired)], seen
        return expected.differences(_without_log_rules(seen) if self._sampled else seen, should), seen

    def _should(self, desired: DesiredState) -> dict[str, TableSeen] | None:
        """The tables as they should be; None where the kernel's encoding of the rules cannot be obtained."""
        text, networks = expected.scratch_text(desired.node, desired.edges, desired.policies), tuple(desired.networks())
        if self._learned is None or self._learned[0] != text:
            try:
                self._learned = (text, rules_of(text, TABLE))
            except (OSError, FenceFailed) as error:
                log.warning("the bodies of the fence's rules cannot be compared now: %s", error)
                return None
        if self._expected is None or self._expected[:2] != (text, networks):
            self._expected = (text, networks, expected.expand(self._learned[1], networks))
        return self._expected[2]


def _without_log_rules(seen: Tables | None) -> Tables | None:
    if seen is None:
        return None
    return {
        family: table
        and replace(
            table, chains={name: replace(chain, rules=_without(chain.rules)) for name, chain in table.chains.items()}
        )
        for family, table in seen.items()
    }


def _without(rules: tuple[RuleSeen, ...]) -> tuple[RuleSeen, ...]:
    """The rules but the log rules: those that match what the next rule matches, and then only log."""
    return tuple(rule for rule, after in zip(rules, [*rules[1:], None], strict=False) if not _only_logs(rule, after))


def _only_logs(rule: RuleSeen, after: RuleSeen | None) -> bool:
    if rule.name != drop_log.NAME or after is None:
        return False
    own, next_one = rule.expressions(), after.expressions()
    return [name for name, _ in own[-2:]] == ["limit", "log"] and own[:-2] == next_one[:-2]
