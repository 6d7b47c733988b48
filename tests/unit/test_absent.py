"""What the tool says where no daemon answers."""

import json

import pytest

from cni import defaults
from cni.cli import absent
from cni.cli.absent import Seen, explain

FRESH = Seen(failed="", records=False, unit=False, conf_dir="/etc/cni/net.d", starts=True)


@pytest.mark.parametrize(
    ("changed", "state", "fix"),
    [
        ({}, "not started", ""),
        ({"starts": False}, "stopped", "zlayer-cni start"),
        ({"starts": None}, "not installed", "run `zlayer-cni install`"),
        ({"records": True}, "ended", "zlayer-cni start"),
        ({"records": True, "starts": None}, "ended", "zlayer-cni start"),
        ({"unit": True}, "stopped", "zlayer-cni start"),
        ({"unit": True, "records": True}, "ended", "zlayer-cni start"),
        ({"failed": "no space"}, "failed", "repair that, then `zlayer-cni start`"),
    ],
)
def test_the_states(changed, state, fix):
    absence = explain(FRESH._replace(**changed))
    assert (absence.state, absence.fix) == (state, fix)
    assert "no space" in absence.text or "failed" not in changed


@pytest.mark.parametrize(
    ("entry", "starts"),
    [
        ({"type": "zlayer-cni"}, True),
        ({"TYPE": "zlayer-cni", "RunDir": defaults.RUN_DIR}, True),
        ({"type": "zlayer-cni", "autostart": False}, False),
        ({"type": "zlayer-cni", "runDir": "/run/other"}, None),
        ({"type": "zlayer-cni", "overlayd": {"socket": "/x"}}, None),
        ({"type": "bridge"}, None),
        (7, None),
    ],
)
def test_whether_a_list_lets_the_plugin_start_the_daemon(entry, starts, tmp_path):
    (tmp_path / "10-x.conflist").write_text(json.dumps({"plugins": [{"type": "loopback"}, entry]}))
    (tmp_path / "20-broken.conflist").write_text("{")
    assert absent.look(defaults.RUN_DIR, str(tmp_path)).starts is starts
