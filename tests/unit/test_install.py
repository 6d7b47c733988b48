"""What an installation decides: which versions may go, and where containerd looks."""

import tomllib

import pytest

from cni.cli import files, runtimes, versions

V2 = """
version = 2
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
"""
V3 = """
version = 3
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["/opt/a", "/opt/cni/bin"]
  conf_dir = "/etc/other"
"""


@pytest.mark.parametrize(
    ("laid_down", "used", "gone"),
    [
        ({"c": 3.0}, [], []),
        ({"b": 2.0, "c": 3.0}, [], []),
        ({"a": 1.0, "b": 2.0, "c": 3.0}, [], ["a"]),
        ({"a": 1.0, "b": 2.0, "c": 3.0}, ["a"], []),
        # A downgrade: what was installed last is the one before.
        ({"a": 1.0, "c": 0.0, "b": 2.0}, [], ["a"]),
        ({"z": 0.5, "a": 1.0, "b": 2.0, "c": 3.0}, ["z"], ["a"]),
    ],
)
def test_the_current_version_the_one_before_and_used_ones_stay(laid_down, used, gone):
    assert versions.removable(laid_down, "c", used) == gone


@pytest.mark.parametrize(
    ("text", "bin_dirs", "conf_dir"),
    [
        ("version = 2", ("/opt/cni/bin",), "/etc/cni/net.d"),
        (V2, ("/usr/lib/cni",), "/etc/cni/net.d"),
        (V3, ("/opt/a", "/opt/cni/bin"), "/etc/other"),
        ('[plugins]\n"io.containerd.grpc.v1.cri" = 7', ("/opt/cni/bin",), "/etc/cni/net.d"),
    ],
)
def test_where_containerd_looks(text, bin_dirs, conf_dir):
    found = runtimes.directories(tomllib.loads(text), "config.toml")
    assert found == (bin_dirs, conf_dir, "config.toml")


def test_what_containerd_would_not_find_is_told_with_the_remedy():
    debian = runtimes.directories(tomllib.loads(V2), "/etc/containerd/config.toml")
    (said,) = runtimes.complaints(debian, "/opt/cni/bin", "/etc/cni/net.d")
    assert "containerd looks for plugins in /usr/lib/cni, not in /opt/cni/bin" in said
    assert said.endswith("--bin-dir /usr/lib/cni")
    newer = runtimes.directories(tomllib.loads(V3), "config.toml")
    (said,) = runtimes.complaints(newer, "/opt/cni/bin", "/etc/cni/net.d")
    assert said.endswith("--conf-dir /etc/other")
    assert runtimes.complaints(debian, "/usr/lib/cni/", "/etc/cni/net.d") == []
    assert runtimes.complaints(None, "/anywhere", "/anywhere") == []


def test_what_a_killed_installation_left_goes_with_the_next(tmp_path):
    (tmp_path / ".a.123.new").write_text("half")
    (tmp_path / ".b.123.new").symlink_to("nowhere")
    (tmp_path / ".ab.123.new").write_text("another's")
    files.write(tmp_path / "a", "whole")
    files.link(tmp_path / "b", tmp_path / "a")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", ".ab.123.new"}
    assert (tmp_path / "b").read_text() == "whole"
