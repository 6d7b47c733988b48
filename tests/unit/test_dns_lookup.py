"""Who is told which name: by the fence's decider, with its real inventory of what lies beyond the tunnels."""

from __future__ import annotations

from pathlib import Path

import pytest

from cni.daemon.dns import wire
from cni.daemon.dns.book import NameBook
from cni.daemon.dns.lookup import NameLookup
from cni.daemon.dns.visibility import Asker, Visibility
from cni.daemon.dns.wire import Question
from cni.daemon.events import AttachmentLeaves, AttachmentLive, Events
from cni.daemon.fence.from_records import RemoteView
from cni.daemon.fence.model import FenceEdge, RemoteMember
from cni.daemon.model import dns_members
from cni.daemon.model.dns_members import Member
from cni.daemon.model.dns_names import Zone
from cni.daemon.model.records import AssignedAddress, Attachment
from cni.daemon.parts_fence import build_fence
from cni.daemon.settings import Isolation, Settings
from cni.daemon.state.state import State
from cni.daemon.state.store import Store
from cni.daemon.state.tables import Edge, Tables

NODE = "10.200.0.1"
GUEST, EDGE, OPEN_EDGE, REMOTE, LISTED = "10.200.0.5", "10.200.0.6", "10.200.0.7", "10.200.9.2", "10.200.9.3"


def attachment(name: str, service: str, address: str, network: str | None = None, **more: object) -> Attachment:
    return Attachment(
        network="net",
        container=name,
        ifname=str(more.pop("ifname", "eth0")),
        state="live",
        service=service,
        mode="auto",
        isolation=network,
        bridge="zl-b",
        host_veth=f"v{address}",
        host_mac="02:00:00:00:00:01",
        mac="02:00:00:00:00:02",
        addresses=(AssignedAddress(f"{address}/26", "10.200.1.1"),),
        mtu=1420,
        netns=(1, 1),
        sandbox="/x",
        **more,  # type: ignore[arg-type]
    )


class Names:
    """A book, a fence and a lookup of one node."""

    def __init__(self, directory: Path, refuse_hidden: bool = False, **settings_: object) -> None:
        store, settings, events = Store(directory / "state.db"), Settings(**settings_), Events()  # type: ignore[arg-type]
        state = State(store, settings, events)
        self.registry = Tables(store)
        self.fence = build_fence(state, settings, True, lambda: True, lambda: ())
        self.book = NameBook(None)
        self.lookup = NameLookup(
            self.book,
            Visibility(self.book, self.fence.status, self.registry),
            lambda: Zone("z.local", "z", ranges=("10.200.0.0/16",)),
            5,
            refuse_hidden,
        )

    def attach(self, *found: Attachment) -> None:
        for each in found:
            self.book.on_attached(AttachmentLive(each))

    def asker(self, source: str) -> Asker:
        asker = self.lookup.asker(source)
        assert asker is not None
        return asker

    def told(self, source: str, name: str, kind: int = wire.A) -> set[str] | int | None:
        """The IPv4 addresses that an asker gets; the code if it gets none; None if the question is forwarded."""
        question = Question(0, 0, b"", wire.wire_name(name.split(".")), kind, wire.IN, None)
        resolved = self.lookup.resolve(question, self.asker(source))
        if resolved is None:
            return None
        found = {".".join(map(str, record[-4:])) for record in resolved.answer.records}
        return found or resolved.answer.code


@pytest.fixture
def names(tmp_path: Path) -> Names:
    made = Names(tmp_path)
    made.attach(
        attachment("w1", "web", "10.200.1.2"),
        attachment("w2", "web", "10.200.1.3"),
        attachment("d1", "db", "10.200.1.66", "shop"),
        attachment("c1", "cart", "10.200.1.130", "shop"),
    )
    return made


def test_a_member_sees_its_network_and_the_flat_mesh_itself(names: Names) -> None:
    assert names.told("10.200.1.2", "web.z.local") == {"10.200.1.2", "10.200.1.3"}
    assert names.told("10.200.1.2", "db.z.local") == wire.NXDOMAIN
    assert names.told("10.200.1.130", "db.z.local") == {"10.200.1.66"}
    assert names.told("10.200.1.130", "web.z.local") == wire.NXDOMAIN
    assert names.told("10.200.1.130", "web") is None
    assert names.told(NODE, "db.z.local") == {"10.200.1.66"}


def test_a_container_is_gone_with_its_event(names: Names) -> None:
    assert names.told("10.200.1.2", "w2.web.z.local") == {"10.200.1.3"}
    names.book.on_leaving(AttachmentLeaves(attachment("w2", "web", "10.200.1.3")))
    assert names.told("10.200.1.2", "w2.web.z.local") == wire.NXDOMAIN
    assert names.told("10.200.1.2", "web.z.local") == {"10.200.1.2"}
    assert names.lookup.asker("10.200.1.3") is None


def test_hidden_names_may_be_refused(tmp_path: Path) -> None:
    names = Names(tmp_path, refuse_hidden=True)
    names.attach(attachment("w1", "web", "10.200.1.2"), attachment("d1", "db", "10.200.1.66", "shop"))
    assert names.told("10.200.1.2", "db.z.local") == wire.REFUSED
    assert names.told("10.200.1.2", "db") == wire.REFUSED
    assert names.told("10.200.1.2", "no.z.local") == wire.NXDOMAIN


def test_a_service_beats_an_alias_and_an_alias_a_registered_name(names: Names) -> None:
    names.attach(attachment("w3", "web", "10.200.1.4", aliases=("db", "main")))
    names.book.set_registered("own", {"db": ("192.0.2.1",), "main": ("192.0.2.2",), "only": ("192.0.2.3",)})
    assert names.told("10.200.1.130", "db.z.local") == {"10.200.1.66"}  # the service, which this asker sees
    assert names.told("10.200.1.2", "db.z.local") == {"10.200.1.4"}  # the alias: the service is none for this one
    assert names.told("10.200.1.130", "main.z.local") == {"192.0.2.2"}  # the alias is another service's
    assert names.told("10.200.1.2", "main") == {"10.200.1.4"}
    assert names.told("10.200.1.2", "only") == {"192.0.2.3"}


def test_an_alias_is_the_isolation_networks(names: Names) -> None:
    names.attach(attachment("d2", "db", "10.200.1.67", "shop", aliases=("primary",)))
    assert names.told("10.200.1.130", "primary") == {"10.200.1.67"}
    names.attach(attachment("o1", "other", "10.200.1.200", aliases=("second",)))
    assert names.told("10.200.1.2", "second") is None  # on the flat mesh, of another service


def test_a_podman_containers_name_is_an_alias(names: Names) -> None:
    names.attach(attachment("x", "web", "10.200.1.9", pod="/box"))
    assert names.told("10.200.1.2", "box") == {"10.200.1.9"}
    assert names.told("10.200.1.2", "box.web.z.local") == {"10.200.1.9"}


def test_both_interfaces_of_a_container_are_its_own(names: Names) -> None:
    names.attach(attachment("two", "a", "10.200.1.20"), attachment("two", "b", "10.200.1.21", "closed", ifname="eth1"))
    assert names.told("10.200.1.20", "b.z.local") == {"10.200.1.21"}
    assert names.told("10.200.1.2", "b.z.local") == wire.NXDOMAIN


def test_an_address_that_was_asked_for_is_not_kept(names: Names) -> None:
    names.attach(attachment("w9", "web", "10.200.1.40", asked=True))
    question = Question(0, 0, b"", wire.wire_name(["web", "z", "local"]), wire.A, wire.IN, None)
    resolved = names.lookup.resolve(question, names.asker("10.200.1.2"))
    assert resolved is not None
    assert {record[-10:-6] for record in resolved.answer.records} == {bytes(4)}


def test_registered_addresses_are_seen_where_a_flow_opens(names: Names) -> None:
    addresses = ("10.200.1.66", "10.200.1.2", "10.200.77.1", "127.0.0.1", "192.0.2.1", NODE)
    names.book.set_registered("own", {"mix": addresses})
    assert names.told("10.200.1.2", "mix.z.local") == {"10.200.1.2", "192.0.2.1", NODE}
    assert names.told("10.200.1.130", "mix.z.local") == {"10.200.1.66", "192.0.2.1", NODE}


def test_what_the_settings_open_is_seen_and_nothing_beside_it(tmp_path: Path) -> None:
    listed = Isolation(reach=("10.200.1.66", "10.200.1.67:80/tcp"), from_=("10.200.1.130/32",))
    names = Names(tmp_path, isolation=listed)
    names.attach(
        attachment("d1", "db", "10.200.1.66", "shop"),
        attachment("d2", "db", "10.200.1.67", "shop"),
        attachment("d3", "db", "10.200.1.68", "shop"),
        attachment("s1", "sender", "10.200.1.130", "else"),
        attachment("s2", "sender", "10.200.1.131", "else"),
    )
    assert names.told("10.200.1.131", "db.z.local") == {"10.200.1.66", "10.200.1.67"}
    assert names.told("10.200.1.130", "db.z.local") == {"10.200.1.66", "10.200.1.67", "10.200.1.68"}
    assert names.told("10.200.1.131", "d3.db.z.local") == wire.NXDOMAIN


def beyond(names: Names) -> None:
    guest = RemoteMember("shop", frozenset({GUEST, LISTED}))
    names.book.put(dns_members.of_guest("vm", "machines", GUEST, "shop"))
    names.registry.edges.put("e", edge("e", EDGE, ("10.200.1.2/32",)))
    names.registry.edges.put("o", edge("o", OPEN_EDGE, ()))
    edges = (FenceEdge("edge:e", EDGE, ("10.200.1.2/32",)),)
    far = (f"{GUEST}/32", f"{EDGE}/32", f"{OPEN_EDGE}/32", "10.200.9.0/26")
    names.fence.members.connect(RemoteView(("wg0",), far, (guest,), edges))


def edge(name: str, ip: str, allowed: tuple[str, ...]) -> Edge:
    held = AssignedAddress(f"{ip}/26", NODE)
    return Edge(
        name=name, held=held, public_key="k", minted_at_unix=0, expires_at_unix=0, deadline=0.0, allowed=allowed
    )


def test_guests_edges_and_other_nodes_ask_by_their_own_row(names: Names) -> None:
    beyond(names)
    assert names.told(GUEST, "db.z.local") == {"10.200.1.66"}
    assert names.told(GUEST, "web.z.local") == wire.NXDOMAIN
    assert names.told(EDGE, "web.z.local") == {"10.200.1.2"}
    assert names.told(EDGE, "db.z.local") == wire.NXDOMAIN
    assert names.told(OPEN_EDGE, "web.z.local") == {"10.200.1.2", "10.200.1.3"}
    assert names.told(REMOTE, "web.z.local") == {"10.200.1.2", "10.200.1.3"}
    assert names.told(REMOTE, "db.z.local") == wire.NXDOMAIN
    assert names.told(LISTED, "db.z.local") == {"10.200.1.66"}
    for stranger in ("192.0.2.9", "10.200.55.1", "127.0.0.1"):
        assert names.lookup.asker(stranger) is None


def test_guests_are_seen_by_their_network(names: Names) -> None:
    beyond(names)
    assert names.told("10.200.1.130", "machines.z.local") == {GUEST}
    assert names.told("10.200.1.130", "vm.machines.z.local") == {GUEST}
    assert names.told("10.200.1.2", "machines.z.local") == wire.NXDOMAIN


def test_a_member_elsewhere_counts_only_as_the_fence_has_it(names: Names) -> None:
    beyond(names)
    names.book.put(Member("r1", "remote", "far", "r1", (LISTED,), "shop"))
    names.book.put(Member("r2", "remote", "far", "r2", ("10.200.9.9",), "shop"))
    names.book.put(Member("r3", "remote", "far", "r3", (REMOTE,)))
    assert names.told("10.200.1.130", "far.z.local") == {LISTED}
    assert names.told("10.200.1.2", "far.z.local") == {REMOTE}


def test_what_changes_beyond_the_tunnels_counts_at_once(names: Names) -> None:
    names.book.put(Member("r1", "remote", "far", "r1", (LISTED,), "shop"))
    assert names.told("10.200.1.130", "far.z.local") == wire.NXDOMAIN
    beyond(names)
    assert names.told("10.200.1.130", "far.z.local") == {LISTED}
    names.fence.members.connect(RemoteView())
    assert names.told("10.200.1.130", "far.z.local") == wire.NXDOMAIN


def test_what_is_no_label_is_told_once(names: Names, caplog: pytest.LogCaptureFixture) -> None:
    names.attach(attachment("u1", "my_service", "10.200.1.50"), attachment("u2", "my_service", "10.200.1.51"))
    assert [record.message.count("my_service") for record in caplog.records] == [2]
    assert names.told("10.200.1.2", "my_service.z.local") == wire.NXDOMAIN
    assert names.told("10.200.1.50", "web.z.local") == {"10.200.1.2", "10.200.1.3"}
