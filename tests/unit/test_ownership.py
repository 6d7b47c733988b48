"""Whose a link, a bridge, a device, a record is, where a hash of its owner names it."""

from pathlib import Path

import pytest

from cni import naming
from cni.daemon.attachments.ownership import is_port_of
from cni.daemon.model import macs
from cni.errors import InterfaceExists, InvalidConfig
from cni.host.links import Link
from cni.upstream.records import Record, Records, digits
from tests.fakes.node import Node

KEY = ("net", "c1", "eth0")
VETH = naming.attachment_veth(*KEY)
MAC = macs.of_host_end(VETH)
DEVICE_TWINS = ("some-service-964ed", "some-service-d4b72")  # one name of a dedicated service's device
BRIDGE_TWINS = ("some-service-6e074", "some-service-2ec180")  # one name of a service's bridge


def link(kind: str = "veth", name: str = VETH, mac: str = MAC, alias: str = "") -> Link:
    return Link(index=5, name=name, up=True, mtu=1420, mac=mac, kind=kind, alias=alias)


@pytest.mark.parametrize(
    ("found", "its"),
    [
        (link(alias=naming.owner_mark(*KEY)), True),
        (link(alias=naming.owner_mark(*KEY), mac="02:00:00:00:00:01", name="renamed"), True),
        (link(alias=naming.owner_mark("net", "c2", "eth0")), False),
        (link(), True),  # of an older version
        (link(alias="what the operator wrote"), True),
        (link(mac="02:00:00:00:00:01"), True),  # nothing else makes such a name
        (link(name="veth-77-s", mac="02:00:00:00:00:01"), False),  # another daemon makes such names too
        (link(kind="bridge"), False),
    ],
)
def test_a_port_is_told_by_its_mark_then_by_its_mac(found: Link, its: bool) -> None:
    assert is_port_of(found, KEY, MAC) is its


def test_a_mark_fits_a_links_alias_whatever_the_names() -> None:
    long = naming.owner_mark("n" * 200, "c" * 200, "eth0")
    assert len(long.encode()) <= naming.ALIAS_LIMIT
    assert long.startswith(naming.OWNER)
    assert long != naming.owner_mark("n" * 200, "c" * 201, "eth0")


def test_two_dedicated_services_never_share_a_device(tmp_path: Path) -> None:
    node = Node(tmp_path / "state.db")
    one, two = DEVICE_TWINS
    assert naming.dedicated_device("zlayer", "0", one) == naming.dedicated_device("zlayer", "0", two)
    node.segments.ensure(one, "dedicated")
    with pytest.raises(InvalidConfig, match="makes the interface name"):
        node.segments.ensure(two, "dedicated")
    node.segments.ensure(two, "auto")  # its bridge has a name of its own
    with pytest.raises(InvalidConfig, match="makes the interface name"):
        node.segments.ensure(two, "dedicated")
    node.close()


def test_tearing_down_an_unknown_service_leaves_anothers_bridge(tmp_path: Path) -> None:
    node = Node(tmp_path / "state.db")
    one, two = BRIDGE_TWINS
    bridge = node.segments.ensure(one, "auto").bridge
    assert bridge == naming.service_bridge("zlayer", "0", two)
    node.segments.teardown(two)
    assert bridge in node.kernel.links
    node.segments.teardown(one)
    assert bridge not in node.kernel.links
    node.close()


def foreign_record(container: str) -> Record:
    return Record(
        network="net",
        container=container,
        ifname="eth0",
        state="live",
        boot=Records("/nowhere").boot,
        socket="/run/x.sock",
        service="web",
        mode="auto",
        pid=1,
        start_time=1,
        host_veth="veth-1-s",
    )


def test_a_record_on_a_foreign_daemon_is_not_taken_for_anothers(tmp_path: Path) -> None:
    records = Records(str(tmp_path))
    other, mine = foreign_record("other"), foreign_record("mine")
    records.save(other)
    place = tmp_path / "foreign"
    (place / f"{digits(*other.key)}.json").rename(place / f"{digits(*mine.key)}.json")  # as if the hashes were one
    assert records.load(mine.key) is None
    with pytest.raises(InterfaceExists, match="net/other/eth0"):
        records.save(mine)
    records.drop(mine.key)
    assert (place / f"{digits(*mine.key)}.json").exists()
