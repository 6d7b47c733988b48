"""The metrics of WireGuard's peers, the paths to them, and the store. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from cni import answers
from cni.daemon.metrics.kinds import MOST, MetricKind, Sample, one
from cni.daemon.metrics.path_bytes import path_of
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
    labels = {peer.public_key: label for label, peer in _peers(reading)}
    for (key, path), sums in reading.peer_bytes.items():
        if key in labels:
            for direction, count in sums.items():
                yield (labels[key], direction, path), count


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
    MetricKind(
        "peer_bytes",
        "counter",
        ("peer", "direction", "path"),
        "Bytes received from and sent to the peer. What passed between two scrapes counts for the path at the second.",
        _bytes,
    ),
    MetricKind(
        "peer_path",
        "gauge",
        ("peer", "path"),
        "1; the path to the peer: direct (a configured endpoint), learned (the peer called from another), hole-punched,"
        " relayed, or none.",
        lambda r: [((label, path_of(peer)), 1.0) for label, peer in _peers(r)],
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
        "relay_sessions",
        "gauge",
        (),
        "Pairs of other nodes that are joined by this node as a relay.",
        lambda r: one(r.relay_pairs),
    ),
    MetricKind(
        "relay_bytes",
        "counter",
        (),
        "Bytes that pairs of other nodes sent through this node. It begins at 0 again when a pair is joined or ends.",
        lambda r: one(r.relayed[1]),
    ),
    MetricKind(
        "store_revision_lag",
        "gauge",
        (),
        "Revisions that etcd is ahead of what its watch has told this node; 0 or, for a moment, a few. Not there"
        " without etcd.",
        lambda r: one(r.store_lag),
    ),
    MetricKind(
        "store_up", "gauge", (), "1 if etcd answers, else 0; without a cluster not there.", lambda r: one(r.store_up)
    ),
)
