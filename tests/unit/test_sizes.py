"""Which MTU a running attachment and its bridge are to have."""

from __future__ import annotations

from cni.daemon.model.records import AssignedAddress, Attachment
from cni.daemon.reconcile.mtu import bridge_sizes, size_for


def attachment(mtu: int = 1420, chosen: bool = False, bridge: str = "web", state: str = "live", six: bool = False):
    return Attachment(
        network="net",
        container="c",
        ifname="eth0",
        state=state,
        service=bridge,
        mode="auto",
        isolation=None,
        bridge=bridge,
        host_veth="veth-1-s",
        host_mac="",
        mac="",
        addresses=(
            AssignedAddress("10.200.1.2/26", "10.200.1.1"),
            *([AssignedAddress("fd00:200::2/120", "fd00:200::1")] if six else []),
        ),
        mtu=mtu,
        mtu_chosen=chosen,
        netns=(4, 1),
        sandbox="/run/netns/c",
    )


def test_a_running_attachment_has_what_a_new_one_gets():
    assert size_for(attachment(1420), 1320) == 1320
    assert size_for(attachment(1320), 1420) == 1420


def test_what_the_configuration_chose_stays():
    assert size_for(attachment(1300, chosen=True), 1420) == 1300


def test_ipv6_is_not_lost_to_a_narrow_underlay():
    assert size_for(attachment(six=True), 1200) == 1280
    assert size_for(attachment(six=False), 1200) == 1200


def test_a_bridge_is_no_wider_than_a_port_that_could_not_follow():
    stuck, free = attachment(1320), attachment(1420)
    assert bridge_sizes([stuck, free, attachment(1420, bridge="db")], 1420) == {"web": 1320}


def test_a_wider_port_a_chosen_size_and_one_in_the_making_do_not_hold_a_bridge_back():
    others = [attachment(1500), attachment(1300, chosen=True), attachment(1300, state="intent")]
    assert bridge_sizes(others, 1420) == {}
