"""The registry of problems: what can be wrong with a running node, each with a code.

An error (`cni/errors.py`) answers one call. A problem is a condition that lasts: `status` shows it and exits with 1,
the daemon's log has a line when it begins and one when it ends, `doctor` repeats it with what to do. docs/problems.md
is made from this table (`python -m cni.problems`), and a test compares the two.

A new problem is a new row here, a test that makes the condition happen, and `ProblemBoard.note` or a `Problem` returned
by the component that sees it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """One row: `code` never changes once released; `area` is "node", "fence", "mesh" (the way to other nodes) or
    "cluster" (the store and what it says); `severity` is "error" (traffic or attaches fail, or isolation is not
    in force) or "warning" (degraded, or about to fail); `meaning` and `action` are for the operator."""

    code: str
    area: str
    severity: str
    meaning: str
    action: str


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One problem that exists now: its code, and a sentence with the values that matter."""

    code: str
    text: str

    def kind(self) -> ProblemKind:
        """The row of the registry. Raises KeyError for a code that the registry does not have."""
        return REGISTRY[self.code]

    def describe(self) -> dict[str, str]:
        """As `status --json` prints it in `problem_details`."""
        kind = self.kind()
        said = {"code": self.code, "area": kind.area, "severity": kind.severity}
        return {**said, "text": self.text, "action": kind.action}


_KINDS = (
    # --- the node ---
    ProblemKind(
        "forwarding-off",
        "node",
        "error",
        "The kernel does not forward packets of an address family that the overlay uses, or those from one link.",
        "Set net.ipv4.ip_forward, net.ipv6.conf.all.forwarding or the link's own to 1; find out what switches it off.",
    ),
    ProblemKind(
        "forward-denied-iptables",
        "node",
        "error",
        "iptables' FORWARD chain drops the containers' packets, and the daemon cannot add its rule there.",
        "Allow the overlay's range in FORWARD, or repair the iptables command named in the text.",
    ),
    ProblemKind(
        "forward-denied-nftables",
        "node",
        "error",
        "A native nftables chain of another program drops forwarded packets by policy.",
        "Allow the overlay's range in that chain: no other table can overrule a drop.",
    ),
    ProblemKind(
        "kernel-setting",
        "node",
        "error",
        "A setting of `all` below net.ipv4.conf or net.ipv6.conf overrules what the overlay sets on its own links.",
        "Give the setting named in the text its default again, or set it on the links that need it instead.",
    ),
    ProblemKind(
        "overlay-range-refused",
        "node",
        "error",
        "The overlay's range overlaps a network of the host, so nothing of the overlay is loaded: ADD fails with 7.",
        "Set cluster_cidr to a free range, the same on every node, and restart; or remove the network in the text.",
    ),
    ProblemKind(
        "overlay-range-overlap",
        "node",
        "error",
        "A network that the host joined later lies in the overlay's range. It is excepted and stays the host's.",
        "Give that network or the overlay another range: no subnet in it is given out, and no peer is reached in it.",
    ),
    ProblemKind(
        "second-daemon",
        "node",
        "warning",
        "Another overlay daemon works in the same network namespace.",
        "Stop one of them: they share tables and bridges.",
    ),
    ProblemKind(
        "overlay-door-closed",
        "node",
        "warning",
        "The socket for ZLayer agents could not be opened.",
        "Free the path, make its directories root's alone, or set overlay_socket in the YAML.",
    ),
    ProblemKind(
        "thread-ended",
        "node",
        "warning",
        "A thread of the daemon ended unexpectedly and was started again; the problem is cleared after 60 s.",
        "Report the daemon's log of the time: it has the traceback.",
    ),
    ProblemKind(
        "thread-hangs",
        "node",
        "error",
        "A thread of the daemon gives no sign of life. After 60 s the daemon replaces itself; traffic goes on.",
        "Report the daemon's log of the time: it says where the thread hangs.",
    ),
    ProblemKind(
        "look-incomplete",
        "node",
        "error",
        "A step of the repeated comparison with the kernel failed; the other steps are done all the same.",
        "Read the text; the step is tried again every 10 s.",
    ),
    ProblemKind(
        "start-incomplete",
        "node",
        "error",
        "A step of the daemon's start failed; the rest of the node works.",
        "Read the text, remove the cause, and restart the daemon.",
    ),
    ProblemKind(
        "node-address",
        "node",
        "error",
        "The node cannot have one of its own overlay addresses; the other address family is unaffected.",
        "Read the text; for IPv6 look at net.ipv6.conf.lo.disable_ipv6. It is tried again every 10 s.",
    ),
    ProblemKind(
        "node-setting",
        "node",
        "error",
        "A kernel setting that the overlay needs cannot be written.",
        "Make /proc/sys writable for the daemon, or set the value that the text names.",
    ),
    ProblemKind(
        "service-incomplete",
        "node",
        "error",
        "The bridge of a service, or one of its gateways, cannot be set up; other services are unaffected.",
        "Read the text; it is tried again every 10 s.",
    ),
    # --- the fence ---
    ProblemKind(
        "fence-not-in-force",
        "fence",
        "error",
        "The nftables tables of the isolation fence are not loaded; ADD fails with 105.",
        "Read the text: it carries the error of nftables. `zlayer-cni doctor` looks for the cause.",
    ),
    ProblemKind(
        "fence-repaired",
        "fence",
        "warning",
        "Another program changed the fence's nftables tables in the last minute; they were put right at once.",
        "Find the program that the text names: a reload of a firewall should not flush the tables of others.",
    ),
    ProblemKind(
        "member-refused",
        "cluster",
        "warning",
        "What another node says of its isolation networks' members is not taken over into the fence.",
        "Look at that node: the text names the address and what is wrong with it. Its other members are unaffected.",
    ),
    # --- the mesh ---
    ProblemKind(
        "mesh-out-of-order",
        "mesh",
        "error",
        "The WireGuard devices or their peers could not be compared with what they should be.",
        "Read the daemon's log at the time; report the text if it stays.",
    ),
    ProblemKind(
        "wireguard-device",
        "mesh",
        "error",
        "A WireGuard device is missing or differs from what it should be.",
        "Install a WireGuard engine, or repair what the text names; the daemon tries again every 10 s.",
    ),
    ProblemKind(
        "route-conflict",
        "mesh",
        "error",
        "The node has routes of its own for subnets that lie behind a tunnel, so the tunnel's routes were not set.",
        "Remove those routes, or give the overlay another range.",
    ),
    ProblemKind(
        "endpoint-refused",
        "mesh",
        "warning",
        "A peer says that it is called inside the overlay's range, or inside what is behind another peer.",
        "Set `advertise` on that node, or the peer's endpoint, to an address of the underlay.",
    ),
    ProblemKind(
        "route-circular",
        "mesh",
        "error",
        "A subnet has no route into the tunnel, for a peer is called at an address inside of it.",
        "Give the peer an endpoint outside of the subnets that are behind peers.",
    ),
    ProblemKind(
        "path-mtu-doubted",
        "mesh",
        "warning",
        "An ICMP message said that the path to a peer is narrower than is believed. It is forged, or the path is odd.",
        "If the path is so narrow indeed, set mtu in the YAML; if not, look for the sender. Packets go in fragments.",
    ),
    ProblemKind(
        "peer-routes-kept-off",
        "mesh",
        "warning",
        "A peer is allowed addresses outside the cluster's ranges, and no route leads to it for them.",
        "If that peer is meant to carry them, name them in the YAML's extra_routes; otherwise correct the peer.",
    ),
    ProblemKind(
        "joined-unreadable",
        "mesh",
        "error",
        "The nodes that were joined by token cannot be read; no peer is removed meanwhile.",
        "Repair or remove peers.json in the data directory, then join those nodes again.",
    ),
    ProblemKind(
        "name-not-found",
        "mesh",
        "warning",
        "The name at which a peer is called cannot be looked up; other names are unaffected.",
        "Repair the name or the node's resolver; it is tried again every 5 s.",
    ),
    ProblemKind(
        "peer-refused",
        "mesh",
        "warning",
        "Something that is said of a peer cannot be used and is left out; the rest of the peer, and every other peer,"
        " is unaffected.",
        "Correct the endpoint or CIDR that the text names where the peer comes from: the YAML, a token, an agent.",
    ),
    # --- the cluster ---
    ProblemKind(
        "cluster-step",
        "cluster",
        "error",
        "A step of the cluster's work failed unexpectedly; the other steps go on.",
        "Read the text and the daemon's log at the time; the step is tried again.",
    ),
    ProblemKind(
        "store-unreachable",
        "cluster",
        "warning",
        "etcd cannot be asked. The node goes on with what it holds.",
        "Check etcd, the network to it and the certificates named in the text.",
    ),
    ProblemKind(
        "store-writes-refused",
        "cluster",
        "warning",
        "etcd answers and refuses what this node writes, so other nodes do not hear of new subnets and members here.",
        "Look for an alarm (`etcdctl alarm list`, NOSPACE), or for the permission that the text names.",
    ),
    ProblemKind(
        "lease-not-renewed",
        "cluster",
        "warning",
        "This node's lease in etcd could not be renewed. When it has ended, new nodes do not learn of this one.",
        "Check etcd and the network to it.",
    ),
    ProblemKind(
        "node-unheard",
        "cluster",
        "warning",
        "A node is not heard of in etcd for longer than lease and grace, but its tunnel answers, so it stays a peer.",
        "Look at that node's `zlayer-cni status`: it cannot write to etcd, or its daemon does not run.",
    ),
    ProblemKind(
        "not-joined",
        "cluster",
        "error",
        "This node has no part in the cluster: a claim was refused.",
        "Read the text: it names the id, slice or key, and who holds it.",
    ),
    ProblemKind(
        "identity-in-use",
        "cluster",
        "error",
        "Another machine publishes under this node's identity.",
        "If one data directory is a copy of the other, remove identity.json on one of the two machines.",
    ),
    ProblemKind(
        "key-in-use",
        "cluster",
        "error",
        "Another node has claimed this node's WireGuard key, so this node stays silent.",
        "`zlayer-cni peer rotate` makes a new key.",
    ),
    ProblemKind(
        "claims-lost",
        "cluster",
        "error",
        "Subnets that this node used now belong to another node.",
        "Restart the containers named in the text; they hold addresses that another node may give out.",
    ),
    ProblemKind(
        "record-refused",
        "cluster",
        "warning",
        "A record in the cluster's store cannot be read or is not believed; the rest of the cluster is unaffected.",
        "Repair or remove the record named in the text; its key names the writer.",
    ),
    ProblemKind(
        "record-not-its-own",
        "cluster",
        "warning",
        "A record about a node was written by another: its signature is wrong, another key's or an older one's, or it"
        " overwrites a claim. It is not believed; this is told for five minutes after it was put right.",
        "Find out who has the store's credentials. `zlayer-cni peer forget` releases a node that has lost its key.",
    ),
    ProblemKind(
        "word-too-long",
        "cluster",
        "warning",
        "This node has more subnets, networks or members than the others read, or names that they refuse.",
        "Spread the containers over more nodes, or give the networks and services shorter names.",
    ),
    ProblemKind(
        "claim-missing",
        "cluster",
        "warning",
        "A node says of itself what its claims in etcd do not cover; that part is not believed, the rest is.",
        "Look at that node: its version, its status, and who controls it.",
    ),
    ProblemKind(
        "peer-key-conflict",
        "cluster",
        "warning",
        "Another node uses a WireGuard key that is not its own, so that node is no peer.",
        "Give that node a key of its own: `zlayer-cni peer rotate` there.",
    ),
)

REGISTRY: dict[str, ProblemKind] = {kind.code: kind for kind in _KINDS}


def page(kinds: Iterable[ProblemKind] = _KINDS) -> str:
    """The text of docs/problems.md."""
    lines = [
        "# Problems",
        "",
        "What `zlayer-cni status` can report. Each problem has a code that does not change. `status` exits with 1",
        "while there is a problem; `status --json` has them as `problem_details`; the daemon's log has a line",
        "`problem=CODE ...` when one begins and `resolved=CODE ...` when it ends. This page is made from",
        "`cni/problems.py` (`python -m cni.problems > docs/problems.md`).",
        "",
        "| code | area | severity | what it means | what to do |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [f"| `{kind.code}` | {kind.area} | {kind.severity} | {kind.meaning} | {kind.action} |" for kind in kinds]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    import sys

    sys.stdout.write(page())
