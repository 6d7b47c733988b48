"""Which fault explains a cell that is not as it should be. Pure: a cell and readings of the node in, a code out."""

from __future__ import annotations

from dataclasses import dataclass

CAUSES: dict[str, tuple[str, str]] = {
    "mtu": (
        "small packets arrive, and packets as large as the MTU do not: the path carries less than the MTU",
        "set `mtu` in the daemon's YAML on every node, or let ICMP's \"fragmentation needed\" through the underlay",
    ),
    "rp-filter": (
        "strict reverse path filtering drops what comes in by this device: the route back leaves by another one",
        "set net.ipv4.conf.all.rp_filter and the device's to 2 (loose), in /etc/sysctl.d",
    ),
    "route-missing": (
        "the node does not send packets for this address into the tunnel",
        "look at `ip rule` and `ip route get ADDRESS`: another program routes the overlay's range",
    ),
    "udp-dropped": (
        "nothing comes from the peer's endpoint: a firewall or the network drops WireGuard's UDP",
        "open WireGuard's port between the nodes, both ways (`zlayer-cni status` names it)",
    ),
    "bridge-nf-call": (
        "the host's firewall drops packets that stay on one bridge: bridge-nf-call-iptables shows them to it",
        "set net.bridge.bridge-nf-call-iptables to 0, or accept packets between the overlay's bridges in that firewall",
    ),
    "foreign-drop": (
        "another program's firewall drops forwarded packets",
        "accept the overlay's range in that table's forward chain; `zlayer-cni status` names the table",
    ),
    "stale-address": (
        "the host itself has the container's address, so it keeps the packets",
        "remove the address or the local route from the host: `ip route get ADDRESS` shows it",
    ),
    "clock": ("the clocks of the two nodes differ", "set the clock by NTP on every node"),
    "wrong-key": (
        "the peer's packets come in, and its device accepts none of ours: one of the two has a wrong public key",
        "compare `peers` on both nodes with `status` on the other one; join or publish the key anew",
    ),
    "pool-full": ("no address is free", "detach containers, or give the node a larger range (`service_cidr`)"),
    "wrong-subnet": (
        "the address is behind no peer of this node: the nodes disagree about who has which subnet",
        "compare `allowed_ips` in `peers` here with `services` in `status` there",
    ),
    "fence-dormant": (
        "the fence is not in force: what it forbids arrives",
        "look which program switches the tables zlayer_cni off (`nft monitor`)",
    ),
    "attach-failed": ("the plugin could not attach the namespace", "the error names the reason"),
    "leak": ("what the fence forbids arrives, and the fence is in force", "please report it, with `zlayer-cni bundle`"),
    "unexplained": ("none of the known faults explains it", "look at `zlayer-cni drops`"),
}
"""What each code means, and the remedy."""

POOL_EXHAUSTED = 104
CLOCK_SKEW = 5.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Readings:
    """The node, as it was read after a cell failed.

    `own`: whether the node itself has the destination. `device`: by which it sends to it, empty without a route.
    `tunnels`, `behind`: the overlay's devices, and whether a peer's allowed IPs have the destination. `silent`: whether
    that peer does not answer; `heard`: whether its packets come in all the same. `reverse`: the devices by which
    packets of the source come in and whose strict reverse path filter refuses them. `filters_bridged`:
    bridge-nf-call-iptables. `denied`: whether another firewall forbids forwarding. `dormant`: the fence's tables are.
    """

    own: bool = False
    device: str = ""
    tunnels: frozenset[str] = frozenset()
    behind: bool = True
    silent: bool = False
    heard: bool = False
    reverse: tuple[str, ...] = ()
    filters_bridged: bool = False
    denied: bool = False
    dormant: bool = False


@dataclass(frozen=True, kw_only=True)
class Symptom:
    """A cell that is not as it should be. `far`: the destination is on another node; `bridged`: both ends are on one
    bridge; `only_bridged`: what is routed on this node arrives; `small_arrives`: of the same pair, a small packet
    does; `narrow`: of the same pair, packets of some sizes do not."""

    kind: str
    should: bool
    far: bool = False
    bridged: bool = False
    only_bridged: bool = False
    small_arrives: bool = False
    narrow: bool = False


def cause(symptom: Symptom, readings: Readings) -> str:
    """The code of the fault that explains it."""
    if symptom.kind == "clocks":
        return "clock"
    if not symptom.should:
        return "fence-dormant" if readings.dormant else "leak"
    if symptom.small_arrives:
        return "mtu" if symptom.kind == "mtu" or symptom.narrow else "unexplained"
    code = _on_the_way(readings) if symptom.far else ""
    if not code and readings.own and symptom.kind != "node":
        code = "stale-address"
    if not code and symptom.bridged and symptom.only_bridged and readings.filters_bridged:
        code = "bridge-nf-call"
    return code or _in_general(readings)


def _on_the_way(readings: Readings) -> str:
    if not readings.behind:
        return "wrong-subnet"
    if readings.own:
        return "stale-address"
    if readings.device not in readings.tunnels:
        return "route-missing"
    if readings.silent:
        return "wrong-key" if readings.heard else "udp-dropped"
    return ""


def _in_general(readings: Readings) -> str:
    if readings.dormant:
        return "fence-dormant"  # its table masquerades what leaves the overlay
    if readings.reverse:
        return "rp-filter"
    return "foreign-drop" if readings.denied else "unexplained"


def of_attach(code: int) -> str:
    """The code for an ADD that failed with CNI's `code`."""
    return "pool-full" if code == POOL_EXHAUSTED else "attach-failed"
