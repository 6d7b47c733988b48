"""One function for each parser that reads what others wrote. It takes any bytes, and raises only what is a defect.

What a parser's documentation says it raises is caught here, and nothing more. Where a sentence can be said of every
input (what was refused is a coded error; what was accepted is read the same again), it is asserted.

An input is text that can be written by hand: its parts are separated by a line of two dashes.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Callable
from typing import Any

from cni.daemon import settings_reader
from cni.daemon.api import cni_socket
from cni.daemon.cluster import etcd_protocol
from cni.daemon.cluster import view as fleet_view
from cni.daemon.cluster.belief import believe
from cni.daemon.cluster.store import StoreError
from cni.daemon.mesh import joined_peers
from cni.daemon.model import keys
from cni.daemon.model.endpoints import split_endpoint
from cni.errors import CniError
from cni.host import addressing, links, nat_iptables, nat_rules, netlink, wg_uapi
from cni.netconf.policy import ClusterWords
from cni.netconf.request import read_request
from cni.netconf.types import DNS
from cni.overlay import wire
from cni.overlay.address import network
from cni.overlay.errors import CodecError, FrameTooLarge, TruncatedFrame
from cni.overlay.framing import Framer
from cni.plugin import config as plugin_config
from cni.verbs import Attached, serve

SEPARATOR = b"\n--\n"
NETNS = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
OWN = "11111111-1111-4111-8111-111111111111"
KEY = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE="
CODES = {*range(1, 12), 50, 51, *range(100, 130)}  # docs/errors.md


def node_records(data: bytes) -> None:
    """What the store holds: each part is a key below the cluster's base, a line break, and the value; a key that
    begins with `-` is one that is gone."""
    base = "/zlayer-cni/zlayer/"
    view = fleet_view.ClusterView(base)
    records: list[tuple[str, bytes]] = []
    for part in data.split(SEPARATOR):
        name, _, value = part.partition(b"\n")
        records.append((name.decode(errors="replace"), value))
    half = len(records) // 2
    view.load([(base + key, value) for key, value in records[:half]], 0.0)
    for key, value in records[half:]:
        if key.startswith("-"):
            view.gone(base + key[1:], 1.0)
        else:
            view.put(base + key, value)
    found = believe(view, OWN, {KEY}, ["web"], ("10.200.0.0/16", "fd00:200::/48"))
    for targets in found.fleet.peers.values():
        for target in targets:
            assert target.public_key != KEY, "this node's own key is not a peer's"
    texts = (*found.conflicts.values(), *found.unclaimed.values(), *view.refused(20).values())
    assert all(words.isprintable() for words in texts)
    view.foreign(OWN)
    view.knows(OWN, 1, KEY, ["10.200.1.0/26"])
    view.settle(1e9)
    for doc in view.overdue(1e9, 1.0):
        view.drop(doc.identity)


def etcd_answer(data: bytes) -> None:
    """An answer of etcd: a status in the first line, then the body; read as an answer to each kind of question."""
    head, _, body = data.partition(b"\n")
    status = int(head) if head.isdigit() and len(head) < 5 else 200
    try:
        said = etcd_protocol.read_answer(status, body)
    except StoreError:
        return
    for read in (
        etcd_protocol.read_page,
        etcd_protocol.read_transaction,
        etcd_protocol.read_lease,
        etcd_protocol.read_token,
    ):
        try:
            read(said)
        except StoreError:
            continue


def etcd_watch(data: bytes) -> None:
    """A line of a watch."""
    try:
        revision, events = etcd_protocol.read_watch(data)
    except StoreError:
        return
    assert isinstance(revision, int) and all(isinstance(each.item.value, bytes) for each in events)


def join_token(data: bytes) -> None:
    """A token that a person pastes: as it is, and as the JSON inside one."""
    body = base64.urlsafe_b64encode(data).decode().rstrip("=")
    for text in (data.decode(errors="replace"), f"{joined_peers.PREFIX}{body}"):
        try:
            found = joined_peers.decode(text)
        except CniError:
            continue
        assert joined_peers.decode(joined_peers.encode(found)) == found


def overlay_frames(data: bytes) -> None:
    """What a client of the overlay door sends: frames."""
    framer = Framer(1 << 16)
    for at in range(0, len(data), 61):
        framer.feed(data[at : at + 61])
        try:
            while (body := framer.next_frame()) is not None:
                overlay_body(body)
        except FrameTooLarge:
            return
    try:
        framer.eof()
    except TruncatedFrame:
        return


def overlay_body(data: bytes) -> None:
    """One frame's body: what is taken is written and read the same again."""
    try:
        found = wire.decode_frame(data)
    except CodecError:
        return
    assert wire.decode_frame(wire.encode(found)) == found
    if isinstance(found, wire.RequestFrame):
        assert wire.decode_request_frame(data) == found


class _Overlay:
    """An overlay that gives every container the same address."""

    def attach(self, *_: Any) -> Attached:
        return Attached(
            bridge="zl-b",
            bridge_mac="02:00:00:00:00:01",
            host_veth="zl-v",
            host_mac="02:00:00:00:00:02",
            mac="0a:58:0a:09:00:42",
            mtu=1420,
            addresses=(("10.9.0.66/26", "10.9.0.65"), ("fd00::42/120", "fd00::1")),
            routes=(("0.0.0.0/0", "10.9.0.65"),),
            dns=DNS(nameservers=("10.9.0.53",)),
        )

    def cluster_words(self, *_: Any) -> ClusterWords:
        return ClusterWords()

    def detach(self, *_: Any) -> None:
        """Nothing is there."""

    def check(self, *_: Any) -> None:
        """It is right."""

    def collect(self, *_: Any) -> list[str]:
        return []

    def ready(self, *_: Any) -> list[str]:
        return []


def cni_door_frame(data: bytes) -> None:
    """What a client of the CNI door sends, carried out: an answer, or an error with a documented code."""
    knock = cni_socket.parse(data, None, lambda: True)
    if knock is not None:
        _answered(knock.env, knock.stdin)


def cni_call(data: bytes) -> None:
    """A call of a runtime: lines of the environment, and the configuration."""
    head, _, stdin = data.partition(SEPARATOR)
    env = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/c1", "CNI_IFNAME": "eth0"}
    for line in head.splitlines():
        key, _, value = line.partition(b"=")
        env[key.decode(errors="replace")] = value.decode(errors="surrogateescape")
    _answered(env, stdin)


def _answered(env: dict[str, str], stdin: bytes) -> None:
    spoken = serve(env, stdin, NETNS, _Overlay(), lambda: True)  # type: ignore[arg-type]
    if spoken.code == 0:
        if spoken.stdout:
            assert isinstance(json.loads(spoken.stdout), dict)
        return
    error = json.loads(spoken.stdout)
    assert error["code"] in CODES, spoken.stdout
    spoken.stdout.encode()


def plugin_place(data: bytes) -> None:
    """The keys that the plugin itself reads: where it finds them, the verbs do as well."""
    try:
        place = plugin_config.place(data, b"ADD")
    except CniError:
        return
    plugin_config.place(data, b"DEL")
    env = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/x", "CNI_IFNAME": "eth0"}
    try:
        _, conf = read_request(env, data)
    except CniError:
        return
    verbs = (os.path.normpath(conf.run_dir), os.path.normpath(conf.data_dir), conf.autostart)
    assert verbs == (place.run_dir, place.data_dir, place.autostart), f"{verbs} is not {place.run_dir} ..."
    assert bool(conf.socket) == bool(place.foreign)


def settings_yaml(data: bytes) -> None:
    """The daemon's YAML."""
    try:
        found = settings_reader.parse(data.decode(errors="replace"))
    except CniError as error:
        assert error.msg.isprintable(), error.msg
        return
    assert found.cidrs


def engine_answer(data: bytes) -> None:
    """A userspace engine's answer to a question."""
    try:
        wg_uapi.parse(data.decode(errors="replace"), 0.0)
    except ValueError:
        return


class _Kernel:
    """A netlink socket whose dumps are given."""

    def __init__(self, bodies: list[bytes]) -> None:
        self._bodies = bodies

    def dump(self, message: netlink.Message, _tries: int = 1) -> list[netlink.Answer]:
        return [netlink.Answer(message.type, body) for body in self._bodies]

    def send(self, _: Any) -> netlink.Outcome:
        return netlink.Outcome([netlink.Answer(0, body) for body in self._bodies], [0])


def namespace_dump(data: bytes) -> None:
    """What a dump of a hostile namespace holds. The kernel's framing is kept: a whole header, of a family that Linux
    has, a prefix of its size, attributes whose lengths are right, addresses of the family's size. The rest is free."""
    bodies: dict[str, list[bytes]] = {"link": [], "address": [], "route": []}
    at = 0
    while at + 4 <= len(data):
        kind, family, prefix, count = data[at : at + 4]
        at += 4
        family = (2, 10, 28, 7)[family % 4]
        size = {2: 4, 10: 16}.get(family, 0)
        wire_ = b""
        for _ in range(count % 8):
            if at + 2 > len(data):
                break
            attribute, length = data[at] % 64, data[at + 1] % 40
            value = data[at + 2 : at + 2 + length]
            at += 2 + length
            value = _plausible(kind % 3, attribute, value, size)
            if (kind % 3, attribute) == (2, addressing.RTA_DST) and size:
                value = _masked(value, prefix % (8 * size + 1))
            wire_ += netlink.attribute(attribute, value)
        bits = prefix % (8 * size + 1)
        match kind % 3:
            case 0:
                bodies["link"].append(netlink.ifinfo(prefix, family=0) + wire_)
            case 1:
                bodies["address"].append(addressing.ADDRESS.pack(family, bits, 0, 0, prefix) + wire_)
            case 2:
                table = 254 if prefix & 1 else prefix
                bodies["route"].append(addressing.ROUTE.pack(family, bits, 0, 0, table, 3, 0, 1, 0) + wire_)
    for link in links.list_links(_Kernel(bodies["link"])):  # type: ignore[arg-type]
        link.name.encode()
    addressing.list_addresses(_Kernel(bodies["address"]))  # type: ignore[arg-type]
    addressing.list_routes(_Kernel(bodies["route"]))  # type: ignore[arg-type]


_SIZES = {
    0: {4: 4, 5: 4, 10: 4, 27: 4, 37: 4},  # IFLA_MTU, LINK, MASTER, GROUP, LINK_NETNSID
    1: {8: 4},
    2: {4: 4, 6: 4, 15: 4},  # RTA_OIF, PRIORITY, TABLE
}
_ADDRESSES: dict[int, set[int]] = {0: set(), 1: {1, 2, 4}, 2: {1, 5, 7}}


def _masked(address: bytes, bits: int) -> bytes:
    """A route's destination has no bits beyond its prefix: the kernel refuses them (IPv4) or takes them off (IPv6)."""
    width = 8 * len(address)
    return (int.from_bytes(address, "big") >> (width - bits) << (width - bits)).to_bytes(len(address), "big")


def _plausible(kind: int, attribute: int, value: bytes, size: int) -> bytes:
    """The value with the length that the kernel gives it."""
    fixed = _SIZES[kind].get(attribute, size if attribute in _ADDRESSES[kind] else None)
    return value if fixed is None else (value + bytes(fixed))[:fixed]


def nat_listing(data: bytes) -> None:
    """The host's translations, which other programs wrote: iptables' lines."""
    with contextlib.suppress(ValueError, LookupError):  # as the reader does
        bases = nat_iptables.bases(data.decode(errors="replace").splitlines(), 4, "nat", "iptables")
        nat_rules.translate(bases, nat_rules.Packet("10.200.5.2", "10.96.0.1", "tcp", 80), False)


def peer_endpoint(data: bytes) -> None:
    """Text that names hosts and networks, from the store, a token, a command line."""
    text = data.decode(errors="replace")
    readers: tuple[Callable[[str], object], ...] = (split_endpoint, network, keys.decode)
    for read in readers:
        try:
            read(text)
        except ValueError:
            continue


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each
    for each in (
        cni_call,
        cni_door_frame,
        engine_answer,
        etcd_answer,
        etcd_watch,
        join_token,
        namespace_dump,
        nat_listing,
        node_records,
        overlay_body,
        overlay_frames,
        peer_endpoint,
        plugin_place,
        settings_yaml,
    )
}
