"""One difference between the rules in the kernel and the desired ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """One difference. `place`: its chain or set, empty for the table. `structure`: loading the rules again does not
    repair it: a set is missing, or a set or chain must be deleted first. `missing`: the table, or that set, does not
    exist. `hook`: the chain is at another hook, and must be deleted before it is created again.
    """

    family: str
    place: str
    text: str
    structure: bool = False
    missing: bool = False
    hook: bool = False
