"""The 15-byte rule, against names that Rust's own hasher gave."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni import naming

CASES = json.loads((Path(__file__).parents[1] / "vectors/interface-names.json").read_text("utf-8"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['why']}: {case['name']}")
def test_names_and_hashes_are_zlayers(case):
    assert f"{naming.name_hash(case['parts'], case['suffix']):x}" == case["hash_hex"]
    assert naming.make_interface_name(case["parts"], case["suffix"]) == case["name"]


def test_the_names_of_the_contract():
    assert naming.global_device("prod", "42") == "zl-prod-42-g"
    assert naming.service_bridge("prod", "0", "web") == "zl-prod-0-web-b"
    assert naming.service_bridge("", "", "web") == "zl---web-b"
    assert naming.dedicated_device("prod", "0", "web") == "zl-prod-0-web-d"
    assert naming.shared_bridge("a", "42") == "zl-b38d60aaf-sh"
    assert naming.pid_host_veth(4294967, "s") == "veth-4294967-s"
    assert naming.edge_fence("ci-7") == "edge:ci-7"


def test_an_attachment_keeps_its_leading_zeros():
    # One hash in sixteen is below 2**60.
    padded = [n for i in range(200) if (n := naming.attachment_veth("net", str(i), "eth0"))[3] == "0"]
    assert padded
    assert all(re.fullmatch(r"zl-0[0-9a-f]{9}-v", name) for name in padded)


def test_attachments_that_read_alike_are_told_apart():
    assert naming.attachment_veth("a-b", "c", "eth0") != naming.attachment_veth("a", "b-c", "eth0")
    assert naming.attachment_veth("a", "b", "eth0") == naming.attachment_veth("a", "b", "eth0")


text = st.text(max_size=20)


@settings(deadline=None)
@given(st.lists(text, max_size=5), text)
def test_no_name_is_over_fifteen_bytes(parts, suffix):
    name = naming.make_interface_name(parts, suffix)
    assert len(name.encode("utf-8", "surrogatepass")) <= 15
    assert name.startswith("zl-")


@settings(deadline=None)
@given(text, text, text)
def test_an_attachment_has_exactly_fifteen_bytes(network, container, ifname):
    assert re.fullmatch(r"zl-[0-9a-f]{10}-v", naming.attachment_veth(network, container, ifname))


def test_naming_imports_nothing():
    """The plugin imports it: what this module pulls in, every call pays for."""
    code = "import sys; old = set(sys.modules); import cni.naming; print(*sorted(set(sys.modules) - old))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert set(out.split()) == {"cni", "cni.naming"}
