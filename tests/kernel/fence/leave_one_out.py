"""Leave each rule of the fence out in turn: some check must fail, or the rule's name says what it backs up.

    python -m tests.kernel.fence.leave_one_out [PART OF A RULE'S NAME]

As root; about ten seconds for each rule nothing catches, one for the others. Prints a line a rule; exit code 1 if one
that claims to be needed is not missed.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from cni.daemon.fence import ruleset as fence
from cni.daemon.fence.rules import Chain, network_chains

from . import (  # noqa: F401 - they register
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
    attacks_openings,
    attacks_routed,
    attacks_source,
    attacks_unbridged,
    matrix,
)
from .lab import NETWORKS, ROUTED, Lab, opened
from .probes import Ears


def first_fault(omit: str) -> str:
    """The first check that fails without the rule; empty if all hold."""
    for nf_call in (0, 1):
        with opened(omit) as lab:
            lab.nf_call(nf_call)
            if said := _first_fault(lab, nf_call):
                return said
    return ""


def _first_fault(lab: Lab, nf_call: int) -> str:
    ears = Ears(lab)
    try:
        if wrong := matrix.differences(lab, ears):
            return f"matrix (bridge-nf-call {nf_call}): {wrong[0]} and {len(wrong) - 1} more"
        for name in attacks.ATTACKS.keys() - (attacks.OF_BRIDGES if ROUTED else {}):
            try:
                wrong = attacks.run(lab, name)
            except Exception as error:  # noqa: BLE001 - a scene that cannot be set is a fault seen
                wrong = [repr(error)]
            if wrong:
                return f"{name} (bridge-nf-call {nf_call}): {wrong[0]}"
    finally:
        ears.close()
    return ""


def rules() -> list[str]:
    """Every rule, as `family chain name`."""
    with opened() as lab:
        node = replace(lab.node, openings=True)
    every: list[Chain] = [*fence.chains(node), *network_chains(NETWORKS[0])]
    return [f"{chain.family} {chain.name} {rule.name}" for chain in every for rule in chain.rules]


def main(part: str = "") -> int:
    """Go through them."""
    missed = 0
    for rule in rules():
        if part not in rule:
            continue
        seen = first_fault(rule)
        backs_up = "backs up" in rule
        verdict = seen or ("nothing (it says what it backs up)" if backs_up else "NOTHING")
        missed += not seen and not backs_up
        sys.stdout.write(f"{rule}: {verdict}\n")
        sys.stdout.flush()
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
