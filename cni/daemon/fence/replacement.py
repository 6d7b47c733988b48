"""The texts that put this version's rules in force, each one transaction: the rules before it are in force until it is
done.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from cni.daemon.fence import elements, policy_changes, ruleset
from cni.daemon.fence.desired import DesiredState
from cni.daemon.fence.fault import Fault
from cni.daemon.fence.model import TABLE

_NAME = re.compile(r"\w{1,64}", re.ASCII)  # another program's chain or set may have any name; nft can express these


def rules(desired: DesiredState, faults: Iterable[Fault] = ()) -> str:
    """Loads every rule anew and keeps every membership. A chain with a fault of its hook is deleted before."""
    return "".join(
        [
            *(
                f"flush chain {f.family} {TABLE} {f.place}\ndelete chain {f.family} {TABLE} {f.place}\n"
                for f in faults
                if f.hook
            ),
            ruleset.base(desired.node),
            *(ruleset.create_network(name) for name in desired.networks()),
            *(ruleset.create_edge(edge) for edge in desired.edges),
            policy_changes.create(desired.policies),
        ]
    )


def in_place(desired: DesiredState, chains: Mapping[str, Iterable[str]], faults: Iterable[Fault]) -> str:
    """Makes tables that exist those of this version, with all elements. `chains`: those that exist, by family.

    A set that stays is never empty for a packet. Tables that are deleted and made anew lose a packet that is looked up
    at that moment (measured: up to 0.4 ms at each replacement). Empty if a name in `faults` cannot be expressed.
    """
    faults = list(faults)
    gone = [fault for fault in faults if fault.structure and not fault.missing]
    if not all(_NAME.fullmatch(fault.place) for fault in gone):
        return ""
    emptied = [  # so that no rule refers to what is deleted
        f"flush chain {family} {TABLE} {chain}\n"
        for family, names in chains.items()
        for chain in names
        if gone and _NAME.fullmatch(chain)
    ]
    of_chains = [fault for fault in gone if fault.place in chains.get(fault.family, ())]
    of_sets = [fault for fault in gone if fault not in of_chains]
    return "".join(
        [
            *emptied,
            *(f"delete set {fault.family} {TABLE} {fault.place}\n" for fault in of_sets),
            *(f"delete chain {fault.family} {TABLE} {fault.place}\n" for fault in of_chains),
            rules(desired, faults),
            elements.change(add=desired.elements()).text(),
        ]
    )


def whole(desired: DesiredState) -> str:
    """Deletes the tables and makes them anew with all they hold."""
    return ruleset.uninstall() + rules(desired) + elements.change(add=desired.elements()).text()
