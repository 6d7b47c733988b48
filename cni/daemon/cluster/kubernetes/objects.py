"""Records of the store as objects of Kubernetes' API, and back. Pure.

A node document is an object ZLayerNode, whose name is the node's identity. A claim is an object ZLayerClaim, whose name
says what is claimed: `id-3`, `slot-10-200-5-0-26`, `slot-fd00020000000000000000000005000-120` (the address of IPv6 in
hexadecimal digits), `key-<hexadecimal digits>`. The names of a node's containers are objects ZLayerName:
`name.<service>.<identity>`, and `index.<identity>`. All are of the cluster, in no namespace. `spec.record` is the
record byte for byte; the other fields are made from it for people who list the objects, and are not read.
"""

from __future__ import annotations

import ipaddress
import json
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cni.daemon.cluster.store import LARGEST, Event, KeyValue, StoreError, WrongServer

GROUP, VERSION = "zlayer.io", "v1alpha1"
NODES, CLAIMS, NAMES = "zlayernodes", "zlayerclaims", "zlayernames"
KIND_OF = {NODES: "ZLayerNode", CLAIMS: "ZLayerClaim", NAMES: "ZLayerName"}
PATHS = {plural: f"/apis/{GROUP}/{VERSION}/{plural}" for plural in KIND_OF}
CLAIM_LABEL = f"{GROUP}/claim"  # id, slot or key
NODE_LABEL = f"{GROUP}/node"  # of names: the identity of their node
_INDEX = "_"  # the last part of the key of a node's index of names
_GONE = 410


@dataclass(frozen=True, slots=True)
class Machine:
    """A kind of object that stands for a machine and owns what its node writes. `required`: nothing is written without
    one; `again`: what makes one that was deleted."""

    api: str
    kind: str
    path: str
    required: bool
    again: str

    def reference(self, name: str, uid: str) -> dict[str, Any]:
        """The reference of an object that this one owns."""
        return {"apiVersion": self.api, "kind": self.kind, "name": name, "uid": uid}


NODE = Machine("v1", "Node", "/api/v1/nodes", required=False, again="its kubelet makes it again")
EXTERNAL_NODE = Machine(
    f"{GROUP}/{VERSION}",
    "ZLayerExternalNode",
    f"/apis/{GROUP}/{VERSION}/zlayerexternalnodes",
    required=True,
    again="`kubectl apply` makes one",
)


@dataclass(frozen=True, slots=True)
class Stored:
    """An object as the API server has it: the record, and what a conditional change of it needs."""

    item: KeyValue
    uid: str
    version: str


@dataclass(frozen=True, slots=True)
class Change:
    """A line of a watch: the object's change, or a bookmark (`event` and `stored` None), and the resource version."""

    event: Event | None
    stored: Stored | None
    revision: int


def plural_of(kind: str) -> str:
    """The plural of the objects that hold records of the kind."""
    return {"node": NODES, "name": NAMES}.get(kind, CLAIMS)


def object_name(kind: str, name: str) -> str:
    """The name of the object of the record `<kind>/<name>`. Raises ValueError for a slot that is no network."""
    if kind == "node":
        return name
    if kind == "name":
        identity, _, part = name.partition("/")
        return f"index.{identity}" if part == _INDEX else f"name.{part}.{identity}"
    if kind == "slot":
        address, _, length = name.partition("_")
        network = ipaddress.ip_network(f"{address}/{length}")
        digits = f"{int(network.network_address):032x}" if network.version == 6 else address.replace(".", "-")
        return f"slot-{digits}-{length}"
    return f"{kind}-{name}"


def record_key(base: str, plural: str, name: str) -> str:
    """The key of the record of the object `name`. A name that this program does not write becomes a key that the reader
    of the records refuses."""
    if plural == NODES:
        return f"{base}node/{name}"
    if plural == NAMES:
        which, _, rest = name.partition(".")
        part, _, identity = rest.partition(".") if which == "name" else (_INDEX, "", rest)
        return f"{base}name/{identity}/{part}"
    kind, _, rest = name.partition("-")
    if kind != "slot":
        return f"{base}{kind if kind in ('id', 'key') else 'key'}/{rest or name}"
    digits, _, length = rest.rpartition("-")
    try:
        address = str(ipaddress.IPv6Address(int(digits, 16))) if len(digits) == 32 else digits.replace("-", ".")
    except ValueError:
        address = digits
    return f"{base}slot/{address}_{length}"


def read_object(base: str, plural: str, raw: dict[str, Any]) -> Stored:
    """An object in an answer. Raises WrongServer if it has not the form of an object."""
    try:
        metadata, spec = raw["metadata"], raw.get("spec") or {}
        name, uid, version = metadata["name"], metadata["uid"], metadata["resourceVersion"]
        made = int(datetime.fromisoformat(metadata["creationTimestamp"]).timestamp())
        record = spec.get("record", "")
        value = record.encode(errors="surrogatepass") if isinstance(record, str) else b""
        cut = len(value) > LARGEST
        item = KeyValue(
            record_key(base, plural, name),
            b"" if cut else value,
            _creation(made, uid if plural == CLAIMS else ""),
            int(version),
            read_lease_name(spec.get("lease", "")),
            cut,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WrongServer(
            f"an object of {plural} has not the expected form: {type(error).__name__}: {error}"
        ) from error
    return Stored(item, uid, version)


def _creation(made: int, uid: str) -> int:
    """A number in place of the revision at which an object was created, which the API does not tell: the second of its
    creation, then bits of its uid, which no client chooses. Of two objects of one second the order is not known; a node
    document (no uid) counts as the older one."""
    return made << 32 | (zlib.crc32(uid.encode()) | 1 if uid else 0)


def new_object(plural: str, name: str, value: bytes, lease: int, owner: dict[str, Any] | None) -> dict[str, Any]:
    """The object of a record. `owner`: the reference to the Node with which the object is deleted."""
    metadata: dict[str, Any] = {"name": name}
    if owner is not None:
        metadata["ownerReferences"] = [owner]
    if plural == CLAIMS:
        metadata["labels"] = {CLAIM_LABEL: name.partition("-")[0]}
    elif plural == NAMES:
        metadata["labels"] = {NODE_LABEL: record_key("", plural, name).split("/")[1]}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND_OF[plural],
        "metadata": metadata,
        "spec": spec_of(plural, value, lease),
    }


def spec_of(plural: str, value: bytes, lease: int) -> dict[str, Any]:
    """The spec of a record: the record, its lease, and fields for people."""
    text = value.decode(errors="surrogatepass")
    spec: dict[str, Any] = {"record": text}
    if lease:
        spec["lease"] = lease_name(lease)
    try:
        shown = json.loads(text)
    except (ValueError, RecursionError):
        shown = None
    if plural == CLAIMS:
        of_slot = isinstance(shown, dict)
        spec["owner"] = str(shown.get("owner", "")) if of_slot else text
        if of_slot and shown.get("use"):
            spec["use"] = str(shown["use"])
    elif plural == NODES and isinstance(shown, dict):
        spec |= {
            "nodeName": str(shown.get("name", "")),
            "nodeID": int(shown.get("node_id", 0)) & (1 << 63) - 1,
            "addresses": [str(host) for host in shown.get("hosts", ())],
            "subnets": [str(cidr) for cidr in (*shown.get("slices", ()), *shown.get("subnets", ()))],
            "version": str(shown.get("version", "")),
        }
    return spec


def read_change(base: str, plural: str, line: bytes) -> Change:
    """A line of a watch. Raises StoreError, with code 410 if the changes since the requested version are no longer
    available."""
    try:
        answer = json.loads(line)
        kind, raw = answer["type"], answer["object"]
        if kind == "ERROR":
            raise StoreError(int(raw.get("code", 0)), str(raw.get("message", raw)))
        if kind == "BOOKMARK":
            return Change(None, None, int(raw["metadata"]["resourceVersion"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WrongServer(f"a line of a watch has not the expected form: {type(error).__name__}: {error}") from error
    stored = read_object(base, plural, raw)
    return Change(Event(stored.item, kind == "DELETED"), stored, stored.item.changed)


def is_outdated(error: StoreError) -> bool:
    """Whether the API server no longer has the requested version."""
    return error.code == _GONE


# --- leases ----------------------------------------------------------------------------------------------------------


def lease_name(lease: int) -> str:
    """The name of the object Lease of a lease."""
    return f"zlayer-{lease:016x}"


def read_lease_name(text: str) -> int:
    """The lease of an object's `spec.lease`; 0 without one, and for a name that this program does not write."""
    digits = text.removeprefix("zlayer-")
    return int(digits, 16) if len(digits) == 16 and all(digit in "0123456789abcdef" for digit in digits) else 0


def new_lease(lease: int, seconds: int, holder: str, now: datetime, owner: dict[str, Any] | None) -> dict[str, Any]:
    """The object Lease of a new lease."""
    metadata: dict[str, Any] = {"name": lease_name(lease)}
    if owner is not None:
        metadata["ownerReferences"] = [owner]
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": metadata,
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": seconds, "renewTime": micro_time(now)},
    }


def micro_time(now: datetime) -> str:
    """A time in the API's form MicroTime."""
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
