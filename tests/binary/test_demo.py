"""`scripts/demo`, as a newcomer runs it: what it shows, and that it leaves nothing behind."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.binary.conftest import FROZEN

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.root,
    pytest.mark.long,
    pytest.mark.skipif(not FROZEN["unpacked"].exists(), reason="run scripts/build"),
]


def leftovers() -> set[str]:
    """Namespaces, directories and sockets of WireGuard engines that a demo made."""
    places = (("/run/netns", "zlt-demo-*"), ("/tmp", "zlayer-demo.*"), ("/run/wireguard", "zl-demo-*"))
    return {str(path) for place, pattern in places for path in Path(place).glob(pattern)}


def test_two_demos_in_a_row():
    """The second one fails where the first leaves an engine or a namespace."""
    before = leftovers()
    for _ in range(2):
        done = subprocess.run(
            ["scripts/demo"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
            env={**os.environ, "TERM": "xterm-256color"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "\x1b" not in done.stdout + done.stderr
        assert "web -> 10.200.162.2: answers" in done.stdout, "the second node, by the tunnel"
        assert "vault -> 192.0.2.99: answers" in done.stdout
        assert "NO   10.200.104.66 (web, " in done.stdout, "`why` about the isolated container"
        assert done.stdout.splitlines()[-3].startswith("sudo dist/zlayer-cni install")
    assert leftovers() == before
