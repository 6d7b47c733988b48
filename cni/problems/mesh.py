"""The problems of WireGuard and its peers."""

from __future__ import annotations

from cni.problems.kind import ProblemKind

KINDS = (
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
        "engine-ends-with-daemon",
        "mesh",
        "warning",
        "The daemon runs in a container and has started a userspace WireGuard engine there. The engine ends with the"
        " container, so a restart or an upgrade of the daemon stops every tunnel of the node.",
        "Set `engine_host: true` and run `zlayer-cni pod engine` in a container of its own, as the manifest does; or"
        " use a kernel with WireGuard.",
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
)
