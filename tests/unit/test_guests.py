"""Guests and their isolation networks: one key and address for each, and none where nothing would hold them to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cni.daemon.events import NodeFactsChanged
from cni.daemon.mesh.sources import remote_view
from cni.daemon.model.fleet import Fleet
from cni.daemon.operations import OperationContext, carry_out, guests
from cni.errors import FenceFailed
from cni.overlay import wire
from tests.fakes.node import Node

VM = wire.GuestManaged("vm")


def asked(network: str | None = "red", service: str = "web") -> wire.AttachContainer:
    return wire.AttachContainer(VM, service, False, isolation_network=network)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path / "state.db")
    made.data_path.change_node({"set_up": True})
    yield made
    assert made.store is not None
    made.store.close()


@pytest.fixture
def desk(node: Node) -> OperationContext:
    return node.operations()


def attach(desk: OperationContext, network: str | None = "red") -> wire.GuestConfig:
    return guests.attach_guest(VM, asked(network), desk)


def remotes(desk: OperationContext, fleet: Fleet | None = None) -> dict[str | None, set[str]]:
    found = remote_view(((), ()), fleet, (), desk.registry.guests.all().values()).remotes
    return {each.network: set(each.addresses) for each in found}


@pytest.mark.parametrize("network", ["red", ""])
def test_a_guest_is_not_let_in_where_the_fence_is_not_in_force(
    desk: OperationContext, node: Node, network: str
) -> None:
    node.kernel.complaint = "no nft here"
    with pytest.raises(FenceFailed, match=f"guest vm cannot be held to isolation network {network!r}"):
        attach(desk, network)
    assert (desk.registry.guests.all(), desk.registry.peers.all(), desk.state.leases) == ({}, {}, {})
    said = carry_out(asked(network), desk)
    assert isinstance(said, wire.Err)
    assert said.message.endswith(": no nft here")
    attach(desk, None)  # who asks for no network asks for no fence
    node.kernel.complaint = ""
    first = attach(desk, network)
    node.kernel.complaint = "the tables were deleted"
    with pytest.raises(FenceFailed):
        attach(desk, network)
    assert desk.registry.guests.all()["vm"].public_key == first.public_key, "it is there already, and stays"


def test_another_network_is_another_key_and_address(desk: OperationContext) -> None:
    told: list[wire.GuestConfig] = [attach(desk, network) for network in ("red", "red", "blue", None, "", "red")]
    keys = [each.private_key for each in told]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 5
    assert remotes(desk) == {"red": {told[-1].overlay_ip}}
    assert len(desk.registry.peers.all()) == len(desk.state.leases) == 1


def test_others_hear_of_a_member_and_of_its_end(desk: OperationContext) -> None:
    heard: list[dict[str | None, set[str]]] = []
    desk.events.subscribe(NodeFactsChanged, lambda _: heard.append(remotes(desk)))
    config = attach(desk)
    assert heard[-1] == {"red": {config.overlay_ip}}
    for _ in range(2):
        guests.detach_guest(VM, desk)
    assert heard[-1] == {}
    assert desk.state.leases == {}


def test_guests_join_the_members_elsewhere(desk: OperationContext) -> None:
    fleet = Fleet({}, {"red": frozenset({"10.9.1.2"}), "blue": frozenset({"10.9.1.3"}), "empty": frozenset()})
    config = attach(desk)
    assert remotes(desk, fleet) == {"red": {"10.9.1.2", config.overlay_ip}, "blue": {"10.9.1.3"}}
    assert fleet.members["red"] == {"10.9.1.2"}


def test_the_address_is_free_only_when_nothing_knows_it_as_a_members(
    desk: OperationContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next container with the address must not be in the network because of it."""
    attach(desk)
    done: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: done.append(f"{name} {remotes(desk)}")

    monkeypatch.setattr(desk, "refresh", note("refresh"))
    monkeypatch.setattr(desk, "release", note("release"))
    guests.detach_guest(VM, desk)
    assert done[-2:] == ["refresh {}", "release {}"]
