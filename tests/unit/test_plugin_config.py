"""The keys that the plugin reads by itself: refused with the words and codes that a daemon has for them."""

import json

import pytest

from cni.errors import CniError
from cni.plugin import config
from cni.plugin.door import Place
from cni.spec import values

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
def test_a_deletion_takes_the_default_for_a_path_that_is_too_long(key: str) -> None:
    place = config.place(conf(key, "/" + "x" * 5000), b"DEL")
    assert (place.run_dir, place.data_dir, place.foreign) == (Place().run_dir, Place().data_dir, Place().foreign)
