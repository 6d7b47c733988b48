"""What is wrong with the node's effective kernel settings. Pure.

The kernel combines a link's setting with that of `all` differently for each setting. IPv4 forwarding: only the setting
of the ingress link counts. send_redirects: on if either is on. arp_ignore, rp_filter, accept_dad: the larger value
counts. A write to ip_forward or to `all` sets every link and `default` once; links may differ afterwards.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from cni.host.forwarding import OURS

BLIND = "no answer from there reaches a container"
ARP_SILENT = 8  # arp_ignore: the host answers for none of its addresses
ARP_STRICTEST = 2  # arp_ignore: the largest value that answers for the gateway, and for no address of another link


def forwarding_off(forwards: Mapping[int, bool], closed: Collection[str]) -> dict[str, str]:
    """The settings that keep packets from being forwarded: problem text by subject.

    `forwards`: whether ip_forward and its counterpart of IPv6 are 1, by IP version that the overlay uses. `closed`: the
    links of the overlay, and those towards other networks, whose own IPv4 forwarding is 0.
    """
    problems = {}
    if not forwards.get(6, True):
        problems["6"] = "the node does not forward IPv6: containers reach only their own bridge"
    if 4 in forwards and closed and not forwards[4]:
        problems["4"] = "the node does not forward IPv4: containers reach only their own bridge"
    elif 4 in forwards:
        for link in closed:
            effect = "containers there reach only their own bridge" if is_ours(link) else BLIND
            problems[link] = f"net.ipv4.conf.{link}.forwarding is 0: {effect}"
    return problems


def is_ours(link: str) -> bool:
    """Whether a link's name is one of the overlay's."""
    return link.startswith(OURS)


def overruled(arp_ignore: int) -> dict[str, str]:
    """The settings of `all` that overrule those of the overlay's links: problem text by setting. `arp_ignore`: the
    effective value on the overlay's bridges."""
    if arp_ignore <= ARP_STRICTEST:
        return {}
    effect = "the host answers there for its other addresses as well"
    if arp_ignore == ARP_SILENT:
        effect = "no gateway is answered for, and containers leave their bridge no more"
    text = f"net.ipv4.conf.all.arp_ignore is {arp_ignore} and overrules that of the overlay's bridges: {effect}"
    return {"arp_ignore": text}
