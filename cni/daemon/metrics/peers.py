"""The metrics of WireGuard's peers, the paths to them, and the store. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from cni import answers
from cni.daemon.metrics.kinds import MOST, MetricKind, Sample, one
from cni.daemon.metrics.reading import Reading


def _peers(reading: Reading) -> list[tuple[str, answers.Peer]]:
    """The peers by a label: the name and, where two peers share it or it has none, the first ten characters of the key;
    at most MOST, those with the most traffic."""
    by_traffic = sorted(reading.peers, key=lambda peer: -(peer.rx_bytes + peer.tx_bytes))[:MOST]
    names = [peer.name for peer in by_traffic]
    found: dict[str, answers.Peer] = {}
    for peer in by_traffic:
        is_name = peer.name and names.count(peer.name) == 1
        label = peer.name if is_name else f"{peer.name} {peer.public_key[:10]}".strip()
        found.setdefault(label, peer)
    return list(found.items())


def _bytes(reading: Reading) -> Iterator[Sample]:
    for label, peer in _peers(reading):
        yield (label, "received"), peer.rx_bytes
        yield (label, "sent"), peer.tx_bytes


def _path(peer: answers.Peer) -> str:
    if not peer.alive:
        return "none"
    return "direct" if peer.direct else "learned"


METRICS = (
    MetricKind("peers", "gauge", (), "Peers of WireGuard.", lambda r: one(len(r.peers))),
    MetricKind(
        "peers_alive",
        "gauge",
        (),
        "Peers whose last handshake is younger than a session can be (180 s).",
        lambda r: one(sum(peer.alive for peer in r.peers)),
    ),
    MetricKind(
        "peer_handshake_timestamp_seconds",
        "gauge",
        ("peer",),
        "When the last handshake with the peer was, in Unix seconds; 0 for never.",
        lambda r: [((label,), float(peer.last_handshake_unix or 0)) for label, peer in _peers(r)],
    ),
    MetricKind("peer_bytes", "counter", ("peer", "direction"), "Bytes received from and sent to the peer.", _bytes),
    MetricKind(
        "peer_path",
        "gauge",
        ("peer", "path"),
        "1; the path to the peer: direct (a configured endpoint), learned (the peer called from another), or none.",
        lambda r: [((label, _path(peer)), 1.0) for label, peer in _peers(r)],
    ),
    MetricKind(
        "peer_path_mtu_bytes",
        "gauge",
        ("peer",),
        "The largest packet that the path to the peer carries, as far as it is known.",
        lambda r: [((label,), float(peer.path_mtu)) for label, peer in _peers(r) if peer.path_mtu is not None],
    ),
    MetricKind(
        "path_changes",
        "counter",
        ("change",),
        "Changes of peers. Change: endpoint, health (answers or not), or size (the path's MTU).",
        lambda r: [
            (("endpoint",), float(r.counts["peer-endpoint"])),
            (("health",), float(r.counts["peer-health"])),
            (("size",), float(r.counts["path-sizes"])),
        ],
    ),
    MetricKind(
        "store_up", "gauge", (), "1 if etcd answers, else 0; without a cluster not there.", lambda r: one(r.store_up)
    ),
)
