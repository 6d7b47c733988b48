"""One real node among a thousand that are only objects of the API server: what its watch costs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec

from cni.daemon.cluster.kubernetes.api_server import ApiServer
from cni.daemon.cluster.kubernetes.objects import CLAIMS, NODES, PATHS, new_object, object_name
from cni.daemon.model import keys
from cni.daemon.model.cluster_records import SERVICE, SLICE, NodeDocument, Slot, hexadecimal
from cni.daemon.settings import Kubernetes
from tests.mesh.bench import daemon_of, peers_of, synthetic, used
from tests.mesh.fleet import Node, inside, run, wait_for

from .control_plane import ADDRESS, ADMIN, SERVER, ControlPlane

COUNT = 1000
CHANGES, PAUSE = 100, 0.2  # documents that change, and seconds between two
RANGE = "10.64.0.0/10"


def claims(doc: NodeDocument) -> dict[str, bytes]:
    """The claims of a node, by the names of their objects."""
    uses = {doc.slices[0]: SLICE, doc.subnets[0]: f"{SERVICE}web"}
    slots = {cidr.replace("/", "_"): msgspec.json.encode(Slot(doc.identity, use)) for cidr, use in uses.items()}
    made = {object_name("slot", name): value for name, value in slots.items()}
    own = doc.identity.encode()
    return {**made, f"id-{doc.node_id}": own, f"key-{hexadecimal(doc.public_key)}": own}


class Crowd:
    """Nodes that are only objects."""

    def __init__(self, plane: ControlPlane, count: int) -> None:
        token = plane.directory / "admin-token"
        token.write_text(ADMIN)
        where = Kubernetes(server=SERVER, ca_file=plane.files["ca.pem"], token_file=str(token))
        self._server, self._path = ApiServer(where, lambda *_: None), f"/run/netns/{plane.underlay}"
        self._documents = [synthetic(number, keys.generate(), 1, sequence=1) for number in range(1, count + 1)]

    def create(self) -> None:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda part: inside(self._path, lambda: self._create(part)), range(8)))

    def _create(self, part: int) -> None:
        for doc in self._documents[part::8]:
            for name, value in claims(doc).items():
                self._server.call("POST", PATHS[CLAIMS], new_object(CLAIMS, name, value, 0, None))
            body = new_object(NODES, doc.identity, msgspec.json.encode(doc), 0, None)
            self._server.call("POST", PATHS[NODES], body)

    def change(self, count: int, pause: float) -> None:
        """Change so many documents, one after the other."""
        inside(self._path, lambda: [self._change(doc, pause) for doc in self._documents[:count]])

    def _change(self, doc: NodeDocument, pause: float) -> None:
        fresh = msgspec.structs.replace(doc, sequence=2, members={"red": (doc.subnets[0].replace("/26", "9"),)})
        path = f"{PATHS[NODES]}/{doc.identity}"
        self._server.call("PATCH", path, {"spec": {"record": msgspec.json.encode(fresh).decode()}})
        time.sleep(pause)


def received(node: Node) -> dict[str, int]:
    """The bytes that the API server has sent, by connection."""
    text = run("ip", "netns", "exec", node.name, "ss", "-tinH", "dst", ADDRESS)
    pairs = re.findall(r"^\S+\s+\d+\s+\d+\s+(\S+).*\n(.*)", text, re.M)
    return {local: int((re.findall(r"bytes_received:(\d+)", line) or ["0"])[0]) for local, line in pairs}


def cost(node: Node, seconds: float, work: Callable[[], None]) -> tuple[float, float]:
    """What the daemon takes while `work` is done, in `seconds` at least: bytes a second, and percent of a processor."""
    before, cpu, began = received(node), used(daemon_of(node))[0], time.monotonic()
    work()
    time.sleep(max(0.0, began + seconds - time.monotonic()))
    took = time.monotonic() - began
    heard = sum(count - before.get(local, 0) for local, count in received(node).items())
    return heard / took, (used(daemon_of(node))[0] - cpu) / took * 100


def test_a_watcher_of_a_thousand_nodes(plane: ControlPlane, measured: Callable[[str], None]):
    node, crowd = plane.member(1, cluster_cidr=RANGE), Crowd(plane, COUNT)
    began, cpu = time.monotonic(), used(daemon_of(node))[0]
    crowd.create()
    wait_for(lambda: peers_of(node) == COUNT, "all peers", 300, 0.2)
    took, spent = time.monotonic() - began, used(daemon_of(node))[0] - cpu
    time.sleep(10)
    idle, idle_cpu = cost(node, 60, lambda: None)
    busy, busy_cpu = cost(node, CHANGES * PAUSE, lambda: crowd.change(CHANGES, PAUSE))
    measured(f"{COUNT} nodes are created, and are peers, in {took:.1f} s: {spent:.1f} s of the daemon's processor time")
    measured(f"among them, nothing changes: {idle:.0f} bytes a second, {idle_cpu:.1f} % of a processor")
    measured(f"{1 / PAUSE:.0f} documents a second change: {busy:.0f} bytes a second, {busy_cpu:.1f} % of a processor")
    assert idle < 4000, "a Lease that is renewed, or a document that did not change, reaches the watchers"
    assert busy < 50_000 and peers_of(node) == COUNT
