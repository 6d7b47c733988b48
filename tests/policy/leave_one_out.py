"""Leave each rule of the policies out in turn: some packet must have another fate.

    python -m tests.policy.leave_one_out [PART OF A RULE'S NAME...]

As root. Prints a line a rule; exit code 1 if no packet misses a rule that does not say what it backs up.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.policy.rule_lab import Lab, opened


def without(lab: Lab, place: tuple[str, str, str]) -> list[str]:
    """What has another fate without the rule."""
    (handle,) = [handle for *found, handle in lab.rules() if tuple(found) == place]
    family, chain, _ = place
    lab.nft(f"delete rule {family} zlayer_cni {chain} handle {handle}\n")
    try:
        return lab.faults()
    finally:
        lab.restore()


def main(*parts: str) -> int:
    """Go through them with bridge-nf-call 0, and with 1 through those that no packet has missed with 0."""
    missed: dict[tuple[str, str, str], str] = {}
    for nf_call in ("0", "1"):
        with tempfile.TemporaryDirectory() as directory, opened(Path(directory), nf_call) as lab:
            if faults := lab.faults():
                sys.stdout.write(f"with every rule (bridge-nf-call {nf_call}): {faults}\n")
                return 1
            for *found, _ in lab.rules():
                place = (found[0], found[1], found[2])
                if any(part in " ".join(place) for part in parts or ("",)) and not missed.get(place):
                    faults = without(lab, place)
                    missed[place] = f"{faults[0]} and {len(faults) - 1} more" if faults else ""
    for place, fault in missed.items():
        backs_up = "nothing (it says what it backs up)" if "backs up" in place[2] else "NOTHING"
        sys.stdout.write(f"{' '.join(place)}: {fault or backs_up}\n")
    return int(any(not fault and "backs up" not in place[2] for place, fault in missed.items()))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
