"""A pod of the API and its attachments on this node: several interfaces, a new sandbox, a new pod of the same name."""

import msgspec

from cni.daemon.fence.model import PortPolicy
from cni.daemon.fence.port_table import PortTable
from cni.daemon.model.records import Attachment
from cni.daemon.policy.model import Pod, PodPeer, Policy, Requirement, Rule, Selector
from tests.unit.test_check import ATTACHMENT

PEER = PodPeer(Selector((Requirement("app", "In", ("a",)),)), namespace="n")
POLICY = Policy("n", "p", Selector((Requirement("app", "In", ("b",)),)), ingress=(Rule((PEER,)),))
TARGET = Pod("n", "target", {"app": "b"}, (), uid="T")


def attachment(veth: str, ip: str, pod: str, uid: str, container: str = "c", ifname: str = "eth0") -> Attachment:
    address = msgspec.structs.replace(ATTACHMENT.addresses[0], address=f"{ip}/24")
    return msgspec.structs.replace(
        ATTACHMENT,
        host_veth=veth,
        addresses=(address,),
        pod=pod,
        pod_uid=uid,
        container=container,
        ifname=ifname,
    )


def web(uid: str) -> Pod:
    return Pod("n", "web-0", {"app": "a"}, (), uid=uid)


def table() -> PortTable:
    made = PortTable()
    made.reset([])
    made.set_policies("kubernetes", [POLICY])
    made.follow_cluster({}, {"n/target": TARGET, "n/web-0": web("1")}, whole=True)
    made.add(attachment("zl-t", "10.0.0.100", "n/target", "T"))
    return made


def selected(of: PortTable) -> set[str]:
    (kept,) = of.book.table.kept_peers()
    return set(kept.members)


def policy_of(of: PortTable, name: str) -> PortPolicy | None:
    return of.ports[name].policy


def test_a_pod_has_the_addresses_of_all_its_interfaces() -> None:
    ports = table()
    ports.add(attachment("zl-1", "10.0.0.1", "n/web-0", "1"))
    ports.add(attachment("zl-2", "10.0.0.2", "n/web-0", "1", ifname="net1"))
    assert selected(ports) == {"10.0.0.1", "10.0.0.2"}
    ports.follow_cluster({}, {"n/target": TARGET, "n/web-0": web("1")}, whole=True)
    assert selected(ports) == {"10.0.0.1", "10.0.0.2"}


def test_a_new_sandbox_keeps_its_address_when_the_old_one_is_deleted() -> None:
    ports = table()
    ports.add(attachment("zl-1", "10.0.0.1", "n/web-0", "1", "old"))
    ports.add(attachment("zl-2", "10.0.0.2", "n/web-0", "1", "new"))
    ports.remove("zl-1")
    assert selected(ports) == {"10.0.0.2"}
    ports.remove("zl-2")
    assert selected(ports) == set()


def test_a_pod_made_again_opens_when_it_is_heard_of_and_not_before() -> None:
    """The attachment of the earlier pod of that name is not deleted yet."""
    ports = table()
    ports.add(attachment("zl-1", "10.0.0.1", "n/web-0", "1", "old"))
    ports.add(attachment("zl-2", "10.0.0.2", "n/web-0", "2", "new"))
    known, unknown = policy_of(ports, "zl-1"), policy_of(ports, "zl-2")
    assert known != unknown
    ports.follow_cluster(None, {"n/web-0": web("2")})
    assert (policy_of(ports, "zl-1"), policy_of(ports, "zl-2")) == (unknown, known)
    assert selected(ports) == {"10.0.0.2"}
    ports.remove("zl-1")
    assert (policy_of(ports, "zl-2"), selected(ports)) == (known, {"10.0.0.2"})
