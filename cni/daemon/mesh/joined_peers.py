"""Peers that were joined by token, kept over reboots in a file below the data directory that only root can read.

A token describes one node to another: `zlnode1.` and the URL-safe base64 of JSON. It holds no secret, but a node that
joins a token admits the machines of the token's issuer to the overlay.
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
from cni.daemon.model import keys
from cni.daemon.model.endpoints import split_endpoint
from cni.daemon.model.json_depth import check_depth
from cni.daemon.model.records import Node
from cni.errors import InputOutput, InvalidConfig, StateUnusable
from cni.overlay.address import network

PREFIX = "zlnode1."
FILE = "peers.json"
LONGEST = 1 << 16  # characters of a token: room for about a thousand CIDRs


class Invitation(msgspec.Struct, frozen=True, kw_only=True):
    """A node as its token describes it. `endpoints`: `host:port`, the best first; `allowed_ips`: the CIDRs behind
    it."""

    version: int = 1
    name: str
    node_id: int
    cluster_cidrs: tuple[str, ...]
    public_key: str
    endpoints: tuple[str, ...]
    allowed_ips: tuple[str, ...]


def encode(invitation: Invitation) -> str:
    """The token of an invitation."""
    return PREFIX + base64.urlsafe_b64encode(msgspec.json.encode(invitation)).rstrip(b"=").decode("ascii")


def _read(document: bytes) -> Invitation:
    """The invitation in a JSON document. Raises ValueError; the depth of nesting is checked before decoding."""
    check_depth(document)
    return msgspec.json.decode(document, type=Invitation)


def decode(token: str) -> Invitation:
    """The invitation in a token; surrounding white space is ignored. Raises InvalidConfig."""
    text = token.strip()
    if not text.startswith(PREFIX):
        raise InvalidConfig(f"not a node's token: it does not begin with {PREFIX}")
    body = text.removeprefix(PREFIX)
    if len(body) > LONGEST:
        raise InvalidConfig(f"the token cannot be used: it has {len(body)} characters, at most {LONGEST} are read")
    try:
        invitation = _read(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        if invitation.version != 1:
            raise ValueError(f"version {invitation.version} is not known here, only 1 is")
        keys.decode(invitation.public_key)
        for endpoint in invitation.endpoints:
            split_endpoint(endpoint)
        for cidr in (*invitation.allowed_ips, *invitation.cluster_cidrs):
            network(cidr, strict=True)
    except (ValueError, binascii.Error, msgspec.DecodeError, RecursionError) as error:
        raise InvalidConfig(f"the token cannot be used: {error}") from error
    return invitation


def judge(invitation: Invitation, node: Node, own_key: str, own: tuple[str, ...]) -> None:
    """Check that the two nodes can be in one overlay. `own`: the CIDRs behind this node. Raises InvalidConfig with a
    hint."""
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
    """Check that the node can be in one overlay with the present peers. `others`: the name, key and CIDRs of each. A
    subnet that two peers have would redirect traffic of one to the other. Raises InvalidConfig with a hint."""
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
    """Whether both invitations are of the same node, which may have a new key."""
    same = (before.name, before.node_id, before.allowed_ips) == (
        invitation.name,
        invitation.node_id,
        invitation.allowed_ips,
    )
    return before.public_key == invitation.public_key or same


class JoinedPeers:
    """The file of joined peers, read at first use. Thread-safe."""

    def __init__(self, data_dir: str) -> None:
        self._path = Path(data_dir) / FILE
        self._lock = threading.Lock()
        self._invitations: dict[str, Invitation] | None = None

    def all(self) -> list[Invitation]:
        """The joined nodes. Raises InputOutput, StateUnusable."""
        with self._lock:
            return list(self._load().values())

    def add(self, invitation: Invitation) -> None:
        """Record a node, in place of its earlier invitation (`is_again`). Raises InputOutput, StateUnusable."""
        with self._lock:
            others = {key: former for key, former in self._load().items() if not is_again(former, invitation)}
            self._save({**others, invitation.public_key: invitation})

    def remove(self, public_key: str) -> bool:
        """Remove the node with that key; False if there is none. Raises InputOutput, StateUnusable."""
        with self._lock:
            invitations = self._load()
            if public_key in invitations:
                self._save({key: former for key, former in invitations.items() if key != public_key})
            return public_key in invitations

    def _load(self) -> dict[str, Invitation]:
        if self._invitations is None:
            try:
                document = self._path.read_bytes()
                check_depth(document)
                loaded = msgspec.json.decode(document, type=list[Invitation])
            except FileNotFoundError:
                loaded = []
            except OSError as error:
                raise InputOutput(f"cannot read the joined nodes: {error}") from error
            except ValueError as error:
                raise StateUnusable(f"cannot use the joined nodes in {self._path}: {error}") from error
            self._invitations = {invitation.public_key: invitation for invitation in loaded}
        return self._invitations

    def _save(self, invitations: dict[str, Invitation]) -> None:
        try:
            files.write(str(self._path), msgspec.json.encode(list(invitations.values())))
        except OSError as error:
            raise InputOutput(f"cannot write the joined nodes: {error}") from error
        self._invitations = invitations
