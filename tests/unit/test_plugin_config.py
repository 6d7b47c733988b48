"""What the plugin decides by itself, and the keys it reads for that, with the words and codes of a daemon."""

import json
import os
from pathlib import Path

import pytest

from cni import defaults
from cni.errors import CniError
from cni.netconf import values
from cni.plugin import client, config, no_daemon
from cni.plugin.client import Location

LIMITS = {"runDir": values.RUN_DIR_LIMIT, "dataDir": values.PATH_LIMIT, "socket": values.SOCKET_LIMIT}


def conf(key: str, value: object) -> bytes:
    inner: dict[str, object] = {"overlayd": {"socket": value}} if key == "socket" else {key: value}
    return json.dumps({"name": "n", **inner}).encode()


@pytest.mark.parametrize(("key", "limit"), LIMITS.items())
def test_a_path_may_be_as_long_as_the_verbs_say(key: str, limit: int) -> None:
    longest = "/" + "é" * ((limit - 1) // 2)
    config.place(conf(key, longest), b"ADD")
    with pytest.raises(CniError) as caught:
        config.place(conf(key, longest + "é"), b"ADD")
    assert caught.value.code == 7
    assert key in caught.value.msg


@pytest.mark.parametrize("key", LIMITS)
def test_a_path_that_cannot_be_written_is_no_json(key: str) -> None:
    with pytest.raises(CniError) as caught:
        config.place(conf(key, "/\ud800"), b"ADD")
    assert caught.value.code == 6


@pytest.mark.parametrize("key", LIMITS)
def test_a_deletion_takes_the_default_for_a_path_that_is_too_long(key: str) -> None:
    place = config.place(conf(key, "/" + "x" * 5000), b"DEL")
    assert (place.run_dir, place.data_dir, place.foreign) == (
        Location().run_dir,
        Location().data_dir,
        Location().foreign,
    )


def test_whoever_is_not_root_starts_no_daemon_and_is_told_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    place = Location()
    place.run_dir = str(tmp_path / "run")
    env = {b"CNI_COMMAND": b"STATUS"}
    call = client.PluginCall(b"STATUS", env, b'{"cniVersion":"1.1.0","name":"n"}', client.Waiter(5))
    with pytest.raises(client.Closed, match="needs root and runs as user 65534: Permission denied"):
        no_daemon.connect_or_start(call, place, "Permission denied")
    assert not (tmp_path / "run").exists()


def test_the_plugins_own_directories_are_the_defaults():
    """It has them as literals: a module more would be on the path of every call."""
    place = Location()
    assert (place.run_dir, place.data_dir) == (defaults.RUN_DIR, defaults.DATA_DIR)
