"""Peers that were brought together by token: kept in a file below the data directory, root's alone, over reboots.

A token is what one node tells another: `zlnode1.` and then the URL-safe base64 of JSON. It holds no secret; but who
takes one lets its maker's machines into the overlay.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import itertools
import threading
from collections.abc import Iterable
from pathlib import Path

import msgspec

from cni import files
from cni.daemon.cluster.store_records import check_depth
from cni.daemon.model import keys
from cni.daemon.model.endpoints import split_endpoint
from cni.daemon.model.records import Node
from cni.errors import InputOutput, InvalidConfig, StateUnusable
from cni.overlay.address import network

PREFIX = "zlnode1."
FILE = "peers.json"
LONGEST = 1 << 16  # characters of a token: some thousand CIDRs


class Invitation(msgspec.Struct, frozen=True, kw_only=True):
    """A node, to another one. `endpoints`: `host:port`, the best first; `allowed_ips`: what is behind it."""

    version: int = 1
    name: str
    node_id: int
    cluster_cidrs: tuple[str, ...]
    public_key: str
    endpoints: tuple[str, ...]
    allowed_ips: tuple[str, ...]


def encode(invitation: Invitation) -> str:
    """The token."""
    return PREFIX + base64.urlsafe_b64encode(msgspec.json.encode(invitation)).rstrip(b"=").decode("ascii")


def _read(document: bytes) -> Invitation:
    """Raises ValueError, also for a document that is nested deeper than an invitation, before it is decoded."""
    check_depth(document)
    return msgspec.json.decode(document, type=Invitation)


def decode(token: str) -> Invitation:
    """The invitation in a token; white space around it does no harm. Raises InvalidConfig."""
    text = token.strip()
    if not text.startswith(PREFIX):
        raise InvalidConfig(f"not a node's token: it does not begin with {PREFIX}")
    body = text.removeprefix(PREFIX)
    if len(body) > LONGEST:
        raise InvalidConfig(f"the token cannot be used: it has {len(body)} characters, at most {LONGEST} are read")
    try:
        found = _read(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        if found.version != 1:
            raise ValueError(f"version {found.version} is not known here, only 1 is")
        keys.decode(found.public_key)
        for endpoint in found.endpoints:
            split_endpoint(endpoint)
        for cidr in (*found.allowed_ips, *found.cluster_cidrs):
            network(cidr, strict=True)
    except (ValueError, binascii.Error, msgspec.DecodeError, RecursionError) as error:
        raise InvalidConfig(f"the token cannot be used: {error}") from error
    return found


def judge(invitation: Invitation, node: Node, own_key: str, own: tuple[str, ...]) -> None:
    """Whether the two nodes can be in one overlay. `own`: what is behind this one. Raises InvalidConfig: what to do."""
    if invitation.public_key == own_key:
        raise InvalidConfig("this is this node's own token: take it to the other node")
    if set(invitation.cluster_cidrs) != set(node.cidrs):
        raise InvalidConfig(
            f"the other node's overlay is {', '.join(invitation.cluster_cidrs)}, this one's {', '.join(node.cidrs)}",
            "set the same cluster_cidr on both",
        )
    if invitation.node_id == node.node_id:
        raise InvalidConfig(f"both nodes have the node id {node.node_id}", "set another node_id on one of them")
    _apart(invitation.allowed_ips, own, "this one's")


def judge_beside(invitation: Invitation, others: Iterable[tuple[str, str, tuple[str, ...]]]) -> None:
    """Whether the node can be in an overlay with those that are peers already: the name, key and CIDRs of each. A
    subnet of two would draw the traffic of one to the other. Raises InvalidConfig: what to do."""
    for name, key, cidrs in others:
        if key != invitation.public_key:
            _apart(invitation.allowed_ips, cidrs, f"the peer {name or key}'s")


def _apart(theirs: Iterable[str], ours: Iterable[str], whose: str) -> None:
    for one, other in itertools.product(map(ipaddress.ip_network, theirs), map(ipaddress.ip_network, ours)):
        if one.version == other.version and one.overlaps(other):
            raise InvalidConfig(
                f"the other node has {one}, which overlaps {whose} {other}",
                "give each node a slice_cidr and a service_cidr of its own; "
                "if it is the same machine with a new key, `zlayer-cni peer remove` it first",
            )


def is_again(before: Invitation, invitation: Invitation) -> bool:
    """Whether a node that was joined is this one, with another key perhaps: it has made itself a new one."""
    same = (before.name, before.node_id, before.allowed_ips) == (
        invitation.name,
        invitation.node_id,
        invitation.allowed_ips,
    )
    return before.public_key == invitation.public_key or same


class JoinedPeers:
    """The file, read when first needed. Safe from any thread."""

    def __init__(self, data_dir: str) -> None:
        self._path = Path(data_dir) / FILE
        self._lock = threading.Lock()
        self._known: dict[str, Invitation] | None = None

    def all(self) -> list[Invitation]:
        """Who was joined. Raises InputOutput, StateUnusable."""
        with self._lock:
            return list(self._load().values())

    def add(self, invitation: Invitation) -> None:
        """Remember a node, in place of earlier tokens of its key or its node id. Raises InputOutput."""
        with self._lock:
            others = {key: each for key, each in self._load().items() if not is_again(each, invitation)}
            self._save({**others, invitation.public_key: invitation})

    def remove(self, public_key: str) -> bool:
        """Forget it; False if it was not there. Raises InputOutput."""
        with self._lock:
            known = self._load()
            if public_key in known:
                self._save({key: each for key, each in known.items() if key != public_key})
            return public_key in known

    def _load(self) -> dict[str, Invitation]:
        if self._known is None:
            try:
                document = self._path.read_bytes()
                check_depth(document)
                found = msgspec.json.decode(document, type=list[Invitation])
            except FileNotFoundError:
                found = []
            except OSError as error:
                raise InputOutput(f"cannot read the joined nodes: {error}") from error
            except ValueError as error:
                raise StateUnusable(f"cannot use the joined nodes in {self._path}: {error}") from error
            self._known = {each.public_key: each for each in found}
        return self._known

    def _save(self, known: dict[str, Invitation]) -> None:
        try:
            files.write(str(self._path), msgspec.json.encode(list(known.values())))
        except OSError as error:
            raise InputOutput(f"cannot write the joined nodes: {error}") from error
        self._known = known
