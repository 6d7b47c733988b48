"""Where the socket is, against paths that upstream's own code gave."""

import json
import os
from pathlib import Path

import pytest

from cni.overlay.sockets import DEFAULT_SOCKET, default_data_dir, find_socket, socket_path

CASES = json.loads((Path(__file__).parents[1] / "vectors/socket-paths.json").read_text("utf-8"))


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['euid']} {c['home']} {c['data_dir'][:40]}")
def test_paths_are_zlayers(case):
    assert socket_path(case["data_dir"], case["euid"], case["home"]) == case["socket"]


def test_default_directories():
    assert default_data_dir(0, "/root") == "/var/lib/zlayer"
    assert default_data_dir(1000, "/home/u") == "/home/u/.zlayer"
    assert default_data_dir(1000, "/home/u/") == "/home/u/.zlayer"
    assert default_data_dir(1000, None) == "/var/lib/zlayer/.zlayer"


def test_dots_that_lead_somewhere_count():
    for other in ("/var/lib/../lib/zlayer", "./var/lib/zlayer", "var/lib/zlayer", "/var/lib/zlayer/x/.."):
        assert socket_path(other, 0, None) != DEFAULT_SOCKET
    assert socket_path("//var///lib/./zlayer//.", 0, None) == DEFAULT_SOCKET


def test_the_limit_is_in_bytes_and_inclusive():
    room = 103 - len("//run/zlayer-overlayd.sock")
    assert socket_path("/" + "x" * room, 0, None) == "/" + "x" * room + "/run/zlayer-overlayd.sock"
    assert socket_path("/x" + "x" * room, 0, None).startswith("/tmp/zlayer-overlayd-")
    assert socket_path("/" + "é" * room, 0, None).startswith("/tmp/zlayer-overlayd-")


def test_which_data_directory_is_meant():
    default = socket_path(default_data_dir(os.geteuid(), "/h"), os.geteuid(), "/h")
    assert find_socket(env={"HOME": "/h"}) == default == DEFAULT_SOCKET
    assert find_socket(env={"HOME": "/h", "ZLAYER_DATA_DIR": ""}) == default
    assert find_socket(env={"ZLAYER_DATA_DIR": "/srv/z"}) == "/srv/z/run/zlayer-overlayd.sock"
    assert find_socket("/d", env={"ZLAYER_DATA_DIR": "/srv/z"}) == "/d/run/zlayer-overlayd.sock"
