"""What ZLayer's daemon and ours do not agree on in the scenario: both outcomes, and why that is right.

`contract` is the section of the overlay protocol's description that says what upstream does and why ours may or must do
otherwise. A step that is not here must come out the same; a step that is here must come out exactly so, and an entry
whose outcomes agree is a stale one. `without_wireguard` marks what differs only where ours finds no WireGuard, the
kernel's or a program's: there, agreement is no fault.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Difference:
    upstream: Any
    ours: Any
    contract: str
    why: str
    without_wireguard: bool = False


def refused(text: str) -> dict[str, str]:
    """A refusal with that text."""
    return {"refused": text}


ENGINE = "overlay engine error: "
WEB_ROUTES = ["10.200.78.192/26 via link", "default via 10.200.78.193"]
STATUS = {
    "result": "status",
    "node_ip": "10.200.0.17",
    "public_key": "<key>",
    "overlay_cidr": "10.200.0.0/16",
    "slice_cidr": "10.200.0.16/28",
    "peer_count": 0,
    "service_count": 0,
}
DEDICATED = {
    "result": "service_overlay",
    "mode": "dedicated",
    "wg_public_key": "<key>",
    "wg_port": 51421,
    "overlay_ip": "10.200.57.65",
    "subnet": "10.200.57.64/26",
}
NODE = {
    "public_key": "<key>",
    "endpoint": "10.200.0.17:51420",
    "allowed_ips": "10.200.0.0/16",
    "persistent_keepalive_secs": 25,
}
GUEST = {
    "result": "guest_config",
    "overlay_ip": "<web>",
    "prefix_len": 26,
    "private_key": "<key>",
    "public_key": "<key>",
    "listen_port": 51420,
    "peers": [NODE],
}
EDGE = {
    "result": "edge_config",
    "version": 1,
    "name": "ci",
    "overlay_ip": "<slice>",
    "prefix_len": 28,
    "private_key": "<key>",
    "public_key": "<key>",
    "peers": [
        NODE | {"endpoint": "192.0.2.1:51420", "allowed_ips": "10.200.5.0/26,10.200.78.192/26,10.200.0.17/32"},
    ],
    "expires_at_unix": 0,
}
DOMAINS = {"dns_domain": "prod.local local"}


def alpha(cidrs: str) -> list[Any]:
    """What status says of the one peer."""
    return [1, [["<alpha>", "203.0.113.7:51421", cidrs]]]


DIFFERENCES = {
    "who_it_says_it_is": Difference(
        "", "zlayer-cni", "8", "an extra field of status tells our client whom it talks to; upstream's ignores it"
    ),
    "guest_before_the_global_overlay": Difference(
        refused("guest-managed attach requires the global overlay to be set up first (no node WireGuard public key)"),
        refused("guest-managed attach requires the global overlay to be set up first (setup_global_overlay)"),
        "6.10",
        "ours has a key before the setup, and names the operation that is wanting",
    ),
    "mint_before_the_global_overlay": Difference(
        refused("edge mint requires the global overlay to be set up first (no node WireGuard public key)"),
        refused("edge mint requires the global overlay to be set up first (setup_global_overlay)"),
        "6.12",
        "likewise",
    ),
    "status_after_setup": Difference(
        STATUS | {"interface": "zl-prod-42-g"},
        STATUS,
        "6.2",
        "ours names an interface only where there is one",
        without_wireguard=True,
    ),
    "the_global_device": Difference(
        {"mtu": 1420, "up": True}, None, "6.2", "no device without WireGuard", without_wireguard=True
    ),
    "the_devices": Difference(
        ["zl-prod-42-db-d", "zl-prod-42-g"], [], "6.2 and 6.5", "no device without WireGuard", without_wireguard=True
    ),
    "setup_dedicated_again": Difference(
        DEDICATED | {"name": "zl-prod-42-db-d"},
        DEDICATED | {"name": "zl-prod-42-db-b"},
        "6.5",
        "upstream answers with the device when asked again, which is no name to attach to; ours with the bridge",
    ),
    "a_released_address_is_the_next": Difference(
        True,
        False,
        "6.4",
        "ours goes round: an address is not given to another while neighbours still remember its last owner",
    ),
    "inside_the_container": Difference(
        {"links": {"eth0": ["<web>/26", 1500]}, "routes": WEB_ROUTES},
        {"links": {"eth0": ["<web>/26", 1420]}, "routes": WEB_ROUTES},
        "6.5 and 9",
        "upstream leaves bridges and veths at 1500 in front of a device at 1420, and large packets are lost",
    ),
    "attached_again_it_has_the_same_address": Difference(
        False, True, "5.3/15 and 8", "ZLayer's client sends a request again when a connection breaks: no second lease"
    ),
    "attach_both_legs": Difference(
        [
            "<web>",
            {
                "links": {"eth0": ["<web>/26", 1500], "eth1": ["<slice>/24", 1500]},
                "routes": ["10.200.0.0/24 via link", *WEB_ROUTES],
            },
        ],
        ["<web>", {"links": {"eth0": ["<web>/26", 1420]}, "routes": WEB_ROUTES}],
        "6.8 and 5.3/6",
        "the second leg hides the slice's nodes behind a link where they are not, and is a source no fence knows; the "
        "first reaches them by its gateway",
    ),
    "attach_where_there_is_an_eth0": Difference(
        refused(
            ENGINE + "move veth into netns: netlink operation failed: setns_by_fd(index=N, new_name=eth0) failed: "
            "Received a netlink error message File exists (os error 17)"
        ),
        refused(ENGINE + "container netns ops: eth0: File exists (os error 17)"),
        "6.8",
        "the same refusal; ours makes the container's end in place and does not move it",
    ),
    "attach_the_host": Difference(
        refused(
            ENGINE + "container netns ops: netlink operation failed: default route add v4 via gateway 10.200.78.193 "
            "failed: Received a netlink error message File exists (os error 17)"
        ),
        refused(ENGINE + "process <host> is in the host's own network namespace"),
        "5.3/19",
        "upstream does not refuse the host's namespace: here it stumbles over the default route",
    ),
    "guest": Difference(
        GUEST | DOMAINS,
        GUEST,
        "6.8",
        "upstream gives the DNS names of the last attach of any guest to every guest that names none",
    ),
    "add_a_cidr_that_folds": Difference(
        alpha("10.200.0.32/27"),
        alpha("10.200.0.32/28,10.200.0.48/28"),
        "5.3/22-23",
        "our client folds what it can into the one CIDR that upstream's device takes, by remove and add",
    ),
    "add_a_cidr_that_does_not_fold": Difference(
        {
            "UnsupportedPeerChange": "overlayd: peer <alpha> has 10.200.0.32/28, 10.200.0.48/28; not 10.200.9.0/26, "
            "since this overlayd takes one CIDR per peer"
        },
        alpha("10.200.0.32/28,10.200.0.48/28,10.200.9.0/26"),
        "5.3/22-23",
        "our client says plainly what upstream cannot do, and does not send what would wedge it",
    ),
    "remove_a_cidr": Difference(
        alpha("10.200.0.32/28"), alpha("10.200.0.32/28,10.200.9.0/26"), "5.3/22-23", "what was not taken is not there"
    ),
    "add_a_peer_with_a_host_name": Difference(
        refused("invalid peer endpoint peer.example.net:51420: invalid socket address syntax"),
        None,
        "6.11",
        "upstream's device takes literal addresses only; ours resolves names",
    ),
    "mint_without_a_port": Difference(
        refused("edge node_endpoint `192.0.2.1:0` must include a non-zero port"),
        refused("edge node_endpoint `192.0.2.1:0` is not host:port"),
        "6.12",
        "the same refusal in other words",
    ),
    "mint_for_an_unknown_target": Difference(
        refused(
            "edge --allow target `absent` is neither an overlay CIDR/IP nor a service set up on this node; pass a CIDR "
            "(e.g. `10.200.0.0/16`), an overlay IP, or a known service name"
        ),
        refused("edge --allow target `absent` is neither a CIDR, an IP address nor a service known here"),
        "6.12",
        "the same refusal in other words",
    ),
    "mint": Difference([EDGE | DOMAINS, True], [EDGE, True], "6.8", "as with guests"),
    "setup_after_the_teardown": Difference(
        refused(
            ENGINE + "enslave veth-<late>-s to bridge zl-2b113f2ca5-b: "
            "link 'zl-2b113f2ca5-b' not found in current netns"
        ),
        "<web>",
        "6.3",
        "upstream remembers the bridges that its own teardown deleted; only a teardown of the service heals it",
    ),
    "shutdown": Difference([0, True], [0, False], "1.4", "upstream leaves its socket file behind; ours takes it away"),
}
