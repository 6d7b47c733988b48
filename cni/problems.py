"""The registry of problems: the conditions that can be wrong with a running node, each with a code.

An error (`cni/errors.py`) answers one call. A problem is a condition that lasts: `status` shows it and exits with 1,
the daemon logs a line when it begins and when it ends, `doctor` repeats it with the action. docs/problems.md is
generated from this table (`python -m cni.problems`), and a test compares the two.

A new problem needs a row here, a test that makes the condition happen, and `ProblemBoard.note` or a `Problem` returned
by the component that detects it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """One row. `code` never changes after a release; `area` is "node", "fence", "mesh" (WireGuard and its peers) or
    "cluster" (the store and its records); `severity` is "error" (traffic or attaches fail, or isolation is not in
    force) or "warning" (degraded, or about to fail); `meaning` and `action` are texts for the operator."""

    code: str
    area: str
    severity: str
    meaning: str
    action: str


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One problem that exists now: its code, and a sentence with the values concerned."""

    code: str
    text: str

    def kind(self) -> ProblemKind:
        """The row of the registry. Raises KeyError for an unknown code."""
        return REGISTRY[self.code]


_KINDS = (
    # --- the node ---
    ProblemKind(
        "forwarding-off",
        "node",
        "error",
        "The kernel does not forward packets of an address family that the overlay uses, or those from one link.",
        "Set net.ipv4.ip_forward, net.ipv6.conf.all.forwarding or the link's setting to 1; find what sets it to 0.",
    ),
    ProblemKind(
        "forward-denied-iptables",
        "node",
        "error",
        "iptables' FORWARD chain drops the containers' packets, and the daemon cannot add its rule to the chain.",
        "Accept the overlay's range in FORWARD, or repair the iptables command named in the text.",
    ),
    ProblemKind(
        "dns-not-served",
        "node",
        "error",
        "The node's DNS server does not answer at an address of the node, and no result names that address. The text"
        " has the reason: mostly another server has the port, on every address of the host (dnsmasq, named, a pod with"
        " the host's network).",
        "Bind the other server to its own addresses (dnsmasq: `bind-interfaces` or `listen-address`; named:"
        " `listen-on`), or turn the node's server off: `dns: {serve: false}`.",
    ),
    ProblemKind(
        "forward-denied-nftables",
        "node",
        "error",
        "A native nftables chain of another program (firewalld, nftables.conf) drops what containers send, by policy or"
        " by the rule that the text names.",
        "Accept the overlay's range in that chain: no other table can override a drop. For firewalld the text has the"
        " command: the range is made a source of the zone trusted.",
    ),
    ProblemKind(
        "kernel-setting",
        "node",
        "error",
        "A setting of `all` below net.ipv4.conf or net.ipv6.conf overrides the overlay's settings of its own links.",
        "Restore the default of the setting named in the text, or set it only on the links that need it.",
    ),
    ProblemKind(
        "overlay-range-refused",
        "node",
        "error",
        "The overlay's range overlaps a network of the host, so the daemon loads no bridge or rule: ADD fails with 7.",
        "Set cluster_cidr to a free range, the same on every node, and restart; or remove the network in the text.",
    ),
    ProblemKind(
        "overlay-range-overlap",
        "node",
        "error",
        "A network that the host joined later is inside the overlay's range. The overlay does not use that network.",
        "Change the range of that network or of the overlay: the overlay leases no subnet and reaches no peer in it.",
    ),
    ProblemKind(
        "second-daemon",
        "node",
        "warning",
        "Another overlay daemon works in the same network namespace.",
        "Stop one of them: they share tables and bridges.",
    ),
    ProblemKind(
        "overlay-socket-closed",
        "node",
        "warning",
        "The socket for ZLayer agents cannot be opened.",
        "Free the path, make its directories writable by root only, or set overlay_socket in the YAML.",
    ),
    ProblemKind(
        "metrics-closed",
        "node",
        "warning",
        "A socket of the metrics cannot be opened; everything else works.",
        "Free the path or the port, or set another metrics.listen in the YAML, and restart the daemon.",
    ),
    ProblemKind(
        "thread-ended",
        "node",
        "warning",
        "A thread of the daemon ended unexpectedly and was restarted; the problem is cleared after 60 s.",
        "Report the daemon's log of that time: it has the traceback.",
    ),
    ProblemKind(
        "thread-hangs",
        "node",
        "error",
        "A thread of the daemon does not respond. After 60 s the daemon restarts itself; traffic is not interrupted.",
        "Report the daemon's log of that time: it has the position of the thread.",
    ),
    ProblemKind(
        "look-incomplete",
        "node",
        "error",
        "A step of the periodic reconciliation with the kernel failed; the other steps are carried out.",
        "Read the text; the step is repeated every 10 s.",
    ),
    ProblemKind(
        "start-incomplete",
        "node",
        "error",
        "A step of the daemon's start failed; the other steps were carried out.",
        "Read the text, remove the cause, and restart the daemon.",
    ),
    ProblemKind(
        "node-address",
        "node",
        "error",
        "One of the node's own overlay addresses cannot be set; the other address family is unaffected.",
        "Read the text; for IPv6 check net.ipv6.conf.lo.disable_ipv6. The step is repeated every 10 s.",
    ),
    ProblemKind(
        "node-setting",
        "node",
        "error",
        "A kernel setting that the overlay needs cannot be written.",
        "Make /proc/sys writable for the daemon, or set the value named in the text.",
    ),
    ProblemKind(
        "service-same-bridge",
        "node",
        "warning",
        "kube-proxy or IPVS translates services here, and bridged packets pass connection tracking by: a container does"
        " not reach a container on its own bridge by a service's virtual address. Every other way works.",
        "Load br_netfilter and set net.bridge.bridge-nf-call-iptables and net.bridge.bridge-nf-call-ip6tables to 1.",
    ),
    ProblemKind(
        "service-incomplete",
        "node",
        "error",
        "The bridge of a service, or one of its gateways, cannot be set up; other services are unaffected.",
        "Read the text; the step is repeated every 10 s.",
    ),
    ProblemKind(
        "dns-host-not-set",
        "node",
        "warning",
        "`dns: {host: true}` is not in force: systemd-resolved does not run, or refuses the setting of its link, or the"
        " host's programs do not ask it. The text has the reason. Containers are not concerned.",
        "Start systemd-resolved and let /etc/resolv.conf name it (127.0.0.53), or put `resolve` into the hosts line of"
        " nsswitch.conf; or take `dns: {host: true}` out of the YAML. The daemon changes neither file.",
    ),
    ProblemKind(
        "dns-not-intercepted",
        "node",
        "error",
        "`dns: {intercept: true}` is not in force: the sockets or the nftables table for containers' DNS questions"
        " could not be made. Containers ask the servers of their resolv.conf, which do not know the overlay's names.",
        "Follow the text: it has the reason of the kernel or of nftables. The daemon tries again by itself.",
    ),
    ProblemKind(
        "dns-no-upstream",
        "node",
        "warning",
        "A container asks for a name outside the overlay, and no server is named: neither `dns.upstreams` nor the"
        " host's resolv.conf has one. The node refuses such names; it asks no server that no file names.",
        "Name servers in `dns.upstreams`, or in the host's /etc/resolv.conf, which is followed; `dns: {upstreams: []}`"
        " says that refusing is meant.",
    ),
    ProblemKind(
        "dns-upstreams-silent",
        "node",
        "warning",
        "None of the servers for other names answers, by UDP or by TCP: three questions in a row had no answer in 4 s."
        " Containers get answers that are kept, up to an hour beyond their time, and SERVFAIL for the rest.",
        "Look for the servers and the way to them from the host (`dig @SERVER example.org`); name others in"
        " `dns.upstreams` or the host's resolv.conf.",
    ),
    ProblemKind(
        "dns-forward-loop",
        "node",
        "warning",
        "A server for other names is this node itself, or asks this node: such questions cannot be answered. Each is"
        " sent once.",
        "Take the node's own address out of `dns.upstreams`, the host's resolv.conf, or the settings of the server in"
        " between; for the overlay's zone alone, use `dns: {host: true}` or a conditional zone there.",
    ),
    ProblemKind(
        "addresses-low",
        "node",
        "warning",
        "A service has taken 80 % of the addresses that it could have on this node, or more.",
        "Give the overlay a larger range (cluster_cidr, service_cidr), or spread the containers over more nodes;"
        " `zlayer-cni gc` releases what ended containers have left.",
    ),
    ProblemKind(
        "delete-queue-stuck",
        "node",
        "warning",
        "Deletions that plugins queued while no daemon ran are not carried out, though they are tried every 10 s.",
        "Read the daemon's log: it has each one's reason. Their containers keep addresses and links until then.",
    ),
    ProblemKind(
        "disk-full",
        "node",
        "error",
        "The file system of the data directory or of the run directory is full: no record can be written, so ADD fails"
        " with 5.",
        "Free space on the file system named in the text.",
    ),
    ProblemKind(
        "disk-read-only",
        "node",
        "error",
        "The data directory or the run directory is on a file system that is mounted read-only.",
        "Find in the kernel's log why it was mounted so, often an error of the disk; repair it, and mount it writable.",
    ),
    ProblemKind(
        "clock-behind",
        "node",
        "warning",
        "The node's clock is earlier than a file of its identity. WireGuard's peers refuse handshakes that are older"
        " than the last one, and certificates may not be valid yet.",
        "Set the clock, and let NTP or the like keep it.",
    ),
    ProblemKind(
        "version-differs",
        "node",
        "warning",
        "The tool is of another version than the daemon that answers it; or another node of the cluster has run another"
        " version than this one for more than an hour.",
        "`zlayer-cni restart` runs the daemon that is installed, without ending a connection; upgrade the node named in"
        " the text, or finish the upgrade that is under way.",
    ),
    ProblemKind(
        "settings-not-applied",
        "node",
        "warning",
        "The daemon's YAML has changed since the daemon started, or no daemon can start with it any more.",
        "`zlayer-cni validate FILE`, then `zlayer-cni restart`, which ends no connection; or restore the file.",
    ),
    # --- the fence ---
    ProblemKind(
        "fence-not-in-force",
        "fence",
        "error",
        "The nftables tables of the isolation fence are not loaded; ADD fails with 105.",
        "Read the text: it holds the error of nftables. `zlayer-cni doctor` searches for the cause.",
    ),
    ProblemKind(
        "fence-repaired",
        "fence",
        "warning",
        "Another program changed the fence's nftables tables in the last minute; they were repaired at once.",
        "Find the program named in the text: a reload of a firewall should not flush the tables of other programs.",
    ),
    ProblemKind(
        "member-refused",
        "cluster",
        "warning",
        "A member of an isolation network that another node publishes is not added to the fence.",
        "Check that node: the text names the address and the reason. The node's other members are unaffected.",
    ),
    # --- the mesh ---
    ProblemKind(
        "mesh-out-of-order",
        "mesh",
        "error",
        "The WireGuard devices or their peers cannot be compared with their desired state.",
        "Read the daemon's log of that time; report the text if the problem persists.",
    ),
    ProblemKind(
        "wireguard-device",
        "mesh",
        "error",
        "A WireGuard device is missing or differs from its desired state.",
        "Install a WireGuard engine, or remove the cause named in the text; the daemon tries again every 10 s.",
    ),
    ProblemKind(
        "route-conflict",
        "mesh",
        "error",
        "The node has routes of other programs to subnets behind a tunnel, so the tunnel's routes are not set.",
        "Remove those routes, or give the overlay another range.",
    ),
    ProblemKind(
        "endpoint-refused",
        "mesh",
        "warning",
        "The endpoint that a peer publishes is inside the overlay's range, or inside a subnet behind another peer.",
        "Set `advertise` on that node, or the peer's endpoint, to an address of the underlay.",
    ),
    ProblemKind(
        "route-circular",
        "mesh",
        "error",
        "A subnet has no route into the tunnel, because the endpoint of a peer is inside the subnet.",
        "Give the peer an endpoint outside the subnets that are behind peers.",
    ),
    ProblemKind(
        "underlay-narrow",
        "mesh",
        "warning",
        "The underlay's MTU is too small for the least MTU of containers (1280 bytes with IPv6) inside WireGuard.",
        "Raise the underlay's MTU if its links allow it: fragments cost throughput, and some networks drop them.",
    ),
    ProblemKind(
        "peer-silent",
        "mesh",
        "warning",
        "This node calls a peer, and the peer does not answer: there has been no handshake for 180 s, or never one.",
        "Check that node, its address, and every firewall between for UDP to its port; `zlayer-cni doctor` on it looks"
        " at its own. If the node is gone for good: `zlayer-cni peer gone`, `peer remove`.",
    ),
    ProblemKind(
        "wireguard-port-closed",
        "mesh",
        "error",
        "A firewall of this node drops UDP to WireGuard's port: other nodes cannot call this one.",
        "Allow the port; the text has the command. It is looked at once a minute.",
    ),
    ProblemKind(
        "path-mtu-doubted",
        "mesh",
        "warning",
        "An ICMP message reported a smaller MTU of the path to a peer than was measured; it is ignored. Of a peer that"
        " answers no echo the path is not measured: then the message counts within bounds.",
        "Look for the sender: the message may be forged. If the path has that MTU, set mtu in the YAML.",
    ),
    ProblemKind(
        "path-mtu-narrow",
        "mesh",
        "warning",
        "The path to a peer carries smaller packets than its links, and no router says so. The routes to the peer"
        " follow what was measured, so traffic passes.",
        "Repair the path, or let ICMP pass; or set mtu in the YAML to the size named in the text less 80.",
    ),
    ProblemKind(
        "peer-routes-kept-off",
        "mesh",
        "warning",
        "A peer has allowed addresses outside the cluster's ranges, and they have no route to the peer.",
        "If the peer is to carry them, add them to extra_routes in the YAML; otherwise correct the peer.",
    ),
    ProblemKind(
        "joined-unreadable",
        "mesh",
        "error",
        "The file of the nodes that were joined by token cannot be read; no peer is removed meanwhile.",
        "Repair or remove peers.json in the data directory, then join those nodes again.",
    ),
    ProblemKind(
        "name-not-found",
        "mesh",
        "warning",
        "The host name of a peer's endpoint cannot be resolved; other names are unaffected.",
        "Correct the name or repair the node's resolver; the lookup is repeated every 5 s.",
    ),
    ProblemKind(
        "peer-refused",
        "mesh",
        "warning",
        "An endpoint or CIDR of a peer is invalid and is left out; the rest of the peer, and every other peer, is"
        " unaffected.",
        "Correct the endpoint or CIDR named in the text at the source of the peer: the YAML, a token, an agent.",
    ),
    ProblemKind(
        "relay-full",
        "mesh",
        "warning",
        "This node relays for as many pairs of nodes as it may; a further pair found no port.",
        "Raise nat.relay.max_pairs, or give nat.relay.ports more ports, or let another node relay as well.",
    ),
    ProblemKind(
        "relay-unavailable",
        "mesh",
        "warning",
        "This node is configured as a relay and cannot load the rules that join the ports of a pair.",
        "See the reason in the text; a node without nftables should have no nat.relay.",
    ),
    ProblemKind(
        "nat-unavailable",
        "mesh",
        "warning",
        "NAT traversal is on, and paths to peers cannot be looked for: peers are called at their endpoints in turn.",
        "Give the daemon the capability NET_RAW (the unit grants it), or see the reason in the text.",
    ),
    # --- the cluster ---
    ProblemKind(
        "cluster-step",
        "cluster",
        "error",
        "A step of the cluster's threads failed unexpectedly; the other steps are carried out.",
        "Read the text and the daemon's log of that time; the step is repeated.",
    ),
    ProblemKind(
        "store-unreachable",
        "cluster",
        "warning",
        "etcd cannot be reached. The node continues with its present subnets and peers.",
        "Check etcd, the network to it and the certificates named in the text.",
    ),
    ProblemKind(
        "store-not-etcd",
        "cluster",
        "warning",
        "What answers at etcd's endpoints is not the JSON gateway of etcd; the text has endpoint, status and type.",
        "Name etcd's client port in cluster.etcd.endpoints, with https if it has TLS; start etcd with its gateway"
        " (--enable-grpc-gateway=true), and no proxy before it that redirects, compresses or answers itself.",
    ),
    ProblemKind(
        "store-went-back",
        "cluster",
        "warning",
        "etcd has an earlier state than this node has seen: it was restored from an older backup, or lost its data."
        " Traffic goes on; the problem lasts until every node that answers has put its claims and document back.",
        "Check that the restore was meant. If the problem stays, look at `status` of the other nodes; nodes that were"
        " forgotten after the backup are to be forgotten again (`zlayer-cni peer gone`).",
    ),
    ProblemKind(
        "clock-differs",
        "cluster",
        "warning",
        "This node's clock differs by more than 30 s from that of the etcd member which answers it. Certificates, edge"
        " peers' times and WireGuard's handshakes after a change of the clock depend on it.",
        "Look which of the two is wrong, set it, and let NTP or the like keep it.",
    ),
    ProblemKind(
        "store-certificates",
        "cluster",
        "warning",
        "The certificate files for etcd cannot be used. Connections are made with those that were read before, if any.",
        "Replace the files named in the text; key and certificate must belong together. No restart is needed.",
    ),
    ProblemKind(
        "store-writes-refused",
        "cluster",
        "warning",
        "etcd answers and refuses this node's writes, so other nodes do not learn of its new subnets and members.",
        "Check for an alarm (`etcdctl alarm list`, NOSPACE), or for the permission named in the text.",
    ),
    ProblemKind(
        "names-not-shared",
        "cluster",
        "warning",
        "The store refuses the records of this node's names, so containers of other nodes do not resolve them.",
        "Let the node's role write below `name/IDENTITY/` (docs/mesh.md has the command).",
    ),
    ProblemKind(
        "lease-not-renewed",
        "cluster",
        "warning",
        "This node's lease in etcd cannot be renewed. After its expiry, new nodes do not learn of this node.",
        "Check etcd and the network to it.",
    ),
    ProblemKind(
        "node-unheard",
        "cluster",
        "warning",
        "A node has no document in etcd for longer than lease and grace, but its tunnel answers, so it stays a peer.",
        "Check `zlayer-cni status` on that node: it cannot write to etcd, or its daemon does not run.",
    ),
    ProblemKind(
        "not-joined",
        "cluster",
        "error",
        "This node has not joined the cluster: a claim was refused.",
        "Read the text: it names the id, slice or key, and the node that holds it.",
    ),
    ProblemKind(
        "identity-in-use",
        "cluster",
        "error",
        "Another machine publishes under this node's identity.",
        "If one data directory is a copy of the other, remove identity.json on one of the two machines.",
    ),
    ProblemKind(
        "identity-cloned",
        "cluster",
        "error",
        "A virtual machine was cloned with its memory: two machines run as this node. One goes on and tells it for a"
        " minute; the other has no peers and publishes nothing, until the first is gone or has another identity.",
        "Stop the daemon on the machine that is to become a node of its own, remove identity.json from its data"
        " directory, and reboot it.",
    ),
    ProblemKind(
        "key-in-use",
        "cluster",
        "error",
        "Another node has claimed this node's WireGuard key, so this node publishes nothing.",
        "Make a new key: `zlayer-cni peer rotate`.",
    ),
    ProblemKind(
        "claims-lost",
        "cluster",
        "error",
        "Subnets that this node used now belong to another node.",
        "Restart the containers named in the text; they have addresses that another node may lease.",
    ),
    ProblemKind(
        "record-refused",
        "cluster",
        "warning",
        "A record in the cluster's store is unreadable or not accepted; the rest of the cluster is unaffected.",
        "Repair or remove the record named in the text; the record's key names the writer.",
    ),
    ProblemKind(
        "record-not-its-own",
        "cluster",
        "warning",
        "A record about a node was written by another node: its signature is wrong, of another key or of an older"
        " document, or it overwrites a claim. It is not accepted; the problem stays for five minutes after the repair.",
        "Find out who has the store's credentials. `zlayer-cni peer forget` releases a node that has lost its key.",
    ),
    ProblemKind(
        "word-too-long",
        "cluster",
        "warning",
        "This node has more subnets, networks or members than other nodes read, or names that they refuse.",
        "Spread the containers over more nodes, or give the networks and services shorter names.",
    ),
    ProblemKind(
        "claim-missing",
        "cluster",
        "warning",
        "A node publishes something that its claims in etcd do not cover; that part is not accepted, the rest is.",
        "Check that node: its version, its status, and who controls it.",
    ),
    ProblemKind(
        "range-differs",
        "cluster",
        "error",
        "Another node has another range of the overlay than this node. Both report it; what is in only one of the"
        " ranges is not reached by the other node.",
        "Set the same cluster_cidr and cluster_cidr6 on both nodes, and reboot the one that was wrong: the range of a"
        " node that has joined does not change before.",
    ),
    ProblemKind(
        "peer-key-conflict",
        "cluster",
        "warning",
        "Another node publishes a WireGuard key that belongs to a different node, so it is not a peer.",
        "Make a new key on that node: `zlayer-cni peer rotate`.",
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
