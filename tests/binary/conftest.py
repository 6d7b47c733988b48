"""The program in its forms: from source, unpacked, and as the single file with and without the launcher.

The same tests run on each.

`scripts/build` makes the frozen ones; without them their cases are skipped. ZLAYER_DIST says where they are, if not
in dist/. Every case has a temporary directory of its own, so that what a frozen program leaves there is seen.
"""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.binary.fake_door import Program

ROOT = Path(__file__).resolve().parents[2]
DIST = Path(os.environ.get("ZLAYER_DIST", ROOT / "dist"))
FROZEN = {
    "single": DIST / "zlayer-cni",
    "unpacked": DIST / "zlayer-cni.d" / "zlayer-cni",
    # the single file without the launcher: a frozen plugin (scripts/build --without-launcher)
    "plain": DIST.parent / "dist-plain" / "zlayer-cni",
}
FORMS = ["source", *FROZEN]


def program_of(form: str, temporary: Path) -> Program:
    env = {"TMPDIR": str(temporary)}
    if form == "source":
        return Program(form, [sys.executable, "-m", "cni"], env | {"PYTHONPATH": str(ROOT)})
    if not FROZEN[form].exists():
        pytest.skip(f"{FROZEN[form]} is not there: run scripts/build")
    return Program(form, [str(FROZEN[form])], env)


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    path = tmp_path / "tmp"
    path.mkdir()
    return path


@pytest.fixture(params=FORMS)
def program(request: pytest.FixtureRequest, temporary: Path):
    yield program_of(request.param, temporary)
    assert list(temporary.iterdir()) == [], "the program left something in the temporary directory"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def conf(run_dir: Path, tmp_path: Path):
    """A network configuration that points at this test's own directories; autostart is off unless asked for."""

    def make(**more: object) -> bytes:
        base = {"cniVersion": "1.1.0", "name": "net", "type": "zlayer-cni", "autostart": False}
        return json.dumps(base | {"runDir": str(run_dir), "dataDir": str(tmp_path / "data")} | more).encode()

    return make
