"""Who is gone and what it holds, from etcd's keys; and which of them a word means."""

from __future__ import annotations

import msgspec
import pytest

from cni.daemon.cluster.departed_nodes import departed, find
from cni.daemon.model.cluster_records import NodeDocument, Slot
from cni.errors import InvalidConfig

BASE = "/zlayer-cni/prod/"
KEY = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="


def node(identity: str) -> bytes:
    doc = NodeDocument(
        identity=identity,
        name=f"host-{identity}",
        place="p",
        node_id=1,
        public_key=KEY,
        port=51420,
        hosts=("192.0.2.1",),
    )
    return msgspec.json.encode(doc)


ITEMS = {
    f"{BASE}id/1": b"aaaa1111",
    f"{BASE}id/2": b"bbbb2222",
    f"{BASE}id/3": b"bbcc3333",
    f"{BASE}slot/10.200.1.0_26": msgspec.json.encode(Slot("aaaa1111", "slice")),
    f"{BASE}slot/10.200.2.0_26": msgspec.json.encode(Slot("bbbb2222", "slice")),
    f"{BASE}slot/10.200.9.0_26": msgspec.json.encode(Slot("dddd4444", "spare")),
    f"{BASE}key/00ff": b"bbbb2222",
    f"{BASE}node/aaaa1111": node("aaaa1111"),
}


def gone(own: str = "aaaa1111"):
    return departed(ITEMS, own, {"bbbb2222": "host-b"}, BASE)


def test_who_holds_something_and_says_nothing():
    assert [(each.node_id, each.identity, each.name, len(each.keys)) for each in gone()] == [
        (0, "dddd4444", "", 1),
        (2, "bbbb2222", "host-b", 3),
        (3, "bbcc3333", "", 1),
    ]
    (second,) = [each for each in gone() if each.node_id == 2]
    assert set(second.keys) == {f"{BASE}id/2", f"{BASE}slot/10.200.2.0_26", f"{BASE}key/00ff"}
    assert set(second.keys) <= ITEMS.keys()


def test_this_node_is_never_gone():
    assert "bbbb2222" not in {each.identity for each in gone(own="bbbb2222")}


@pytest.mark.parametrize("word", ["2", "host-b", "bbbb2222", "bbbb"])
def test_what_a_word_means(word):
    assert find(gone(), word).identity == "bbbb2222"


@pytest.mark.parametrize("word", ["", "0", "1", "aaaa1111", "bb", "host", "7"])
def test_a_word_that_means_nobody_or_several(word):
    with pytest.raises(InvalidConfig):
        find(gone(), word)
