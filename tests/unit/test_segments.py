"""The slot rule, against scripts answered by ZLayer's own registry, and against a slow model of it."""

import ipaddress
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni.daemon.model.subnets import SubnetRegistry, further
from cni.errors import InvalidConfig, PoolExhausted
from cni.naming import fnv1a64

SCRIPTS = json.loads((Path(__file__).parents[1] / "vectors/service-subnets.json").read_text("utf-8"))
net = ipaddress.ip_network


def play(segments, step):
    if "reserve" in step:
        return None, segments.reserve(step["reserve"])
    if "release" in step:
        return None, segments.release(*step["release"])
    return segments.assign(*step["assign"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script["why"])
def test_subnets_are_zlayers(script):
    if "error" in script:
        with pytest.raises(InvalidConfig, match="/26 must be more specific than cluster prefix /26"):
            SubnetRegistry.over(script["cluster_cidr"], script["slice_prefix"])
        return
    segments = SubnetRegistry.over(script["cluster_cidr"], script["slice_prefix"])
    for address in script["reserved"]:
        segments = segments.reserve(address)
    for step in script["steps"]:
        if step.get("slice", "") is None:
            with pytest.raises(PoolExhausted):
                play(segments, step)
            continue
        got, segments = play(segments, step)
        if "slice" in step:
            assert got == net(step["slice"]), step


def test_asking_twice_changes_nothing():
    first, segments = SubnetRegistry.over("10.200.0.0/16").assign("web", "0")
    again, same = segments.assign("web", "0")
    assert (again, same) == (first, segments)
    assert first == net("10.200.187.128/26")


def test_a_holder_keeps_its_slot_when_that_is_reserved_later():
    first, segments = SubnetRegistry.over("10.200.0.0/16").assign("web", "0")
    segments = segments.reserve(first)
    assert segments.assign("web", "0")[0] == first
    assert segments.release("web", "0").assign("web", "0")[0] == net("10.200.187.192/26")


def test_release_frees_the_slot_at_once_and_may_be_repeated():
    first, segments = SubnetRegistry.over("10.0.0.0/24").assign("svc-0", "0")
    segments = segments.release("svc-0", "0")
    assert segments == SubnetRegistry.over("10.0.0.0/24")
    assert segments.release("svc-0", "0") == segments
    assert segments.assign("svc-0", "0")[0] == first


def test_the_error_is_zlayers():
    segments = SubnetRegistry.over("10.0.0.0/24").reserve("10.0.0.0/24")
    with pytest.raises(PoolExhausted) as caught:
        segments.assign("web", "7")
    assert caught.value.msg == (
        "overlay engine error: ServiceSubnetRegistry::assign(web, 7) failed: No available IP addresses in CIDR range"
    )


def test_a_service_grows_by_further_slots():
    _, segments = SubnetRegistry.over("10.200.0.0/16").assign("web", "1")
    _, segments = segments.assign("web", "11")
    wanted = [segments.get("web", "1")]
    for n in range(1, 12):
        subnet, segments = segments.assign_further("web", "1", n)
        wanted.append(subnet)
    assert segments.subnets("web", "1") == tuple(wanted)
    assert len(set(wanted)) == 12
    assert further("1", 0) == "1"


def test_a_saved_or_foreign_slot_is_held():
    segments = SubnetRegistry.over("10.200.0.0/16").hold("db", "9", net("10.200.187.128/26"))
    assert segments.get("db", "9") == net("10.200.187.128/26")
    assert segments.hold("db", "9", net("10.200.187.128/26")) == segments
    assert segments.assign("web", "0")[0] == net("10.200.187.192/26")
    for wrong in ("10.200.0.0/25", "10.201.0.0/26", "10.199.255.192/26", "fd00::/26"):
        with pytest.raises(InvalidConfig, match="is not one of"):
            segments.hold("x", "0", net(wrong))
    with pytest.raises(InvalidConfig, match="already held by service db on node 9"):
        segments.hold("x", "0", net("10.200.187.128/26"))


def test_a_reserved_slice_covers_every_slot_it_touches():
    segments = SubnetRegistry.over("10.0.0.0/24").reserve("10.0.0.0/25")
    assert segments.reserve("10.0.0.1").reserved == ((0, 1),)
    assert segments.reserve("fd00::1") == segments
    assert segments.reserve("10.0.1.1") == segments
    assert segments.reserve("10.0.0.0/8").reserved == ((0, 3),)
    got = set()
    for service in ("a", "b"):
        subnet, segments = segments.assign(service, "0")
        got.add(str(subnet))
    assert got == {"10.0.0.128/26", "10.0.0.192/26"}


def test_a_huge_reservation_is_stepped_over_not_walked():
    segments = SubnetRegistry.over("fd00::/64").reserve("fd00::/65")
    for n in range(20):
        subnet, segments = segments.assign(f"svc-{n}", "0")
        assert not subnet.overlaps(net("fd00::/65"))
    with pytest.raises(PoolExhausted):
        segments.reserve("fd00:0:0:0:8000::/65").assign("web", "0")


def test_no_slot_lies_beyond_two_to_the_sixty_four():
    segments = SubnetRegistry.over("fd00::/32")
    assert segments.slots == 2**64 - 1
    assert segments.reserve("fd00:0:ffff::1") == segments


def test_filling_a_sixteen_is_quick():
    segments = SubnetRegistry.over("10.200.0.0/16")
    began = time.process_time()
    for n in range(1024):
        _, segments = segments.assign(f"svc-{n}", "0")
    assert len(set(segments.held.values())) == 1024
    assert time.process_time() - began < 5


def test_a_bad_cluster_is_refused():
    with pytest.raises(InvalidConfig, match="Invalid CIDR notation"):
        SubnetRegistry.over("10.200.0.0/40")
    with pytest.raises(InvalidConfig, match="slice prefix /33"):
        SubnetRegistry.over("10.200.0.0/16", 33)


def model(names, reserved):
    """The rule in its plainest form, over a list of all slots."""
    slots: list[Any] = list(net("10.9.0.0/22").subnets(new_prefix=26))
    taken, out = set(), []
    for name in names:
        start = fnv1a64(name.encode() + b"\x1f0") % len(slots)
        for slot in slots[start:] + slots[:start]:
            if slot not in taken and not any(slot.overlaps(net(r)) for r in reserved):
                taken.add(slot)
                out.append(slot)
                break
        else:
            out.append(None)
    return out


cidr = st.builds(
    lambda host, prefix: str(net((f"10.9.{host >> 8}.{host & 255}", prefix), strict=False)),
    st.integers(0, 1023),
    st.integers(20, 32),
)


@settings(deadline=None)
@given(st.lists(st.text("abc", max_size=3), max_size=20, unique=True), st.lists(cidr, max_size=4))
def test_probing_agrees_with_the_model(names, reserved):
    segments, got = SubnetRegistry.over("10.9.0.0/22"), []
    for r in reserved:
        segments = segments.reserve(r)
    for name in names:
        try:
            subnet, segments = segments.assign(name, "0")
        except PoolExhausted:
            subnet = None
        got.append(subnet)
    assert got == model(names, reserved)
