"""What another node says can neither keep this node's fence from being loaded nor keep the rest of it out."""

from __future__ import annotations

import json

import msgspec

from cni.daemon import public_keys
from cni.daemon import settings as settings_module
from cni.daemon.cluster.etcd_client import EtcdClient
from cni.daemon.cluster.store import Put
from cni.daemon.cluster.store_records import StoreKeys
from cni.daemon.fence.model import chain_of
from cni.daemon.model import keys
from cni.daemon.model.cluster_records import Slot
from tests.mesh.etcds import Clustered
from tests.mesh.fleet import Node, inside, run, wait_for

GOOD_SLOT, BAD_SLOT, SLOT6 = "10.200.249.0/26", "10.200.250.0/26", "fd00:200:0:fa::/120"
GOOD, LAST, TWICE = "10.200.249.10", "10.200.249.12", "10.200.250.11"


def write(fleet: Clustered, node: Node, number: int, slot: str, members: dict[str, list[str]]) -> None:
    """A node that is only words in the store: its claims, and what it says of its members."""
    client = EtcdClient(settings_module.Etcd(endpoints=(fleet.etcd.url,)))
    names = StoreKeys(f"/zlayer-cni/{node.settings['deployment']}/")
    identity, key = f"{number:x}" * 8, public_keys.public_of(keys.generate())
    doc = {
        "identity": identity,
        "name": f"words{number}",
        "place": identity,
        "node_id": number,
        "public_key": key,
        "port": 51420,
        "hosts": ["198.51.100.200"],
        "slices": [slot],
        "members": members,
    }
    steps = [Put(names.slot(slot), msgspec.json.encode(Slot(identity, "slice")))]
    steps += [Put(names.key(key), identity.encode()), Put(names.id(number), identity.encode())]
    steps.append(Put(names.node(identity), json.dumps(doc).encode()))
    inside(f"/run/netns/{fleet.underlay}", lambda: client.transact([], steps))


def holds(node: Node, network: str, address: str) -> bool:
    """Whether the fence has the address as one of the network's members."""
    listed = run("ip", "netns", "exec", node.name, "nft", "list", "table", "inet", "zlayer_cni", check=False)
    chain = chain_of(network)
    where = listed.partition(f"set {chain}_m4 {{")[2].partition("\n\t}")[0]
    return address in where and f"{address} : goto {chain}" in listed


def well(node: Node) -> bool:
    """All that is good is in force: the node's own members, and every good word of the other node."""
    good = all(holds(node, each.network or "", each.address) for each in node.containers)
    return good and holds(node, "red", GOOD) and holds(node, "blue", LAST) and not isolation_faults(node)


def isolation_faults(node: Node) -> str:
    done = node.tool("status")
    return "" if done["fence"]["in_force"] else str(done["fence"]["trouble"])


def codes(node: Node) -> set[str]:
    return {each["code"] for each in node.tool("status")["problem_details"]}


def test_a_bad_record_keeps_nothing_else_out(clustered: Clustered, program: tuple[str, ...]) -> None:
    """An address in two networks, and addresses that are text for nft: the fence comes back from a flush, and from a
    restart, and a network with such a member can be joined."""
    node = clustered.member(1, start=False)
    node.program = program
    node.start()
    node.container("web", isolationNetwork="red")
    node.container("web", isolationNetwork="blue")
    bad = ["fd00:200:0:fa::1%eth0", "fd00:200:0:fa::2%a }\nflush ruleset\n"]
    write(clustered, node, 0x9999, GOOD_SLOT, {"red": [GOOD], "blue": [LAST]})
    write(clustered, node, 0xAAAA, BAD_SLOT, {"red": [TWICE], "blue": [TWICE]})
    write(clustered, node, 0xBBBB, SLOT6, {"zone": bad, "zone2": [bad[0]]})
    wait_for(lambda: well(node), "the other node's members")
    wait_for(lambda: codes(node) & {"member-refused", "record-refused"}, "what is refused to be told")
    run("ip", "netns", "exec", node.name, "nft", "delete table inet zlayer_cni; delete table bridge zlayer_cni")
    wait_for(lambda: well(node), "the fence after a flush", 25)
    assert [holds(node, each, TWICE) for each in ("red", "blue")].count(True) <= 1
    node.end()
    run("ip", "netns", "exec", node.name, "nft", "flush ruleset")
    node.start()
    wait_for(lambda: well(node), "the fence after a restart", 25)
    for network in ("zone", "zone2"):
        node.container("web", isolationNetwork=network)
    assert well(node)
