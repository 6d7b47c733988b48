"""A set of packets whose fate is known, by the kernel's rules alone, while no daemon runs; and no rule without a packet
that misses it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.policy.rule_lab import opened

pytestmark = [pytest.mark.root, pytest.mark.long]


@pytest.mark.parametrize("nf_call", ["0", "1"])
def test_every_packet_has_its_fate(tmp_path: Path, nf_call: str) -> None:
    with opened(tmp_path, nf_call) as lab:
        assert lab.faults() == []
