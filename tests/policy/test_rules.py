"""A set of packets whose fate is known, by the kernel's rules alone, while no daemon runs; and no rule without a packet
that misses it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.policy import leave_one_out
from tests.policy.rule_lab import opened

pytestmark = [pytest.mark.root, pytest.mark.long]


@pytest.mark.parametrize("nf_call", ["0", "1"])
def test_every_packet_has_its_fate(tmp_path: Path, nf_call: str) -> None:
    with opened(tmp_path, nf_call) as lab:
        assert lab.faults() == []


def test_every_rule_is_missed(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave_one_out.main() == 0, capsys.readouterr().out
