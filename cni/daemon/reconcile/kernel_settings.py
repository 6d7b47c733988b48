"""What is wrong with the node's effective kernel settings. Pure.

The kernel combines a link's setting with that of `all` differently for each setting. IPv4 forwarding: only the setting
of the ingress link counts. send_redirects: on if either is on. arp_ignore, rp_filter, accept_dad: the larger value
counts. A write to ip_forward or to `all` sets every link and `default` once; links may differ afterwards.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

ARP_SILENT = 8  # arp_ignore: the host answers for none of its addresses
ARP_STRICTEST = 2  # arp_ignore: the largest value that answers for the gateway, and for no address of another link


def forwarding_off(forwards: Mapping[int, bool], closed: Collection[str]) -> dict[str, str]:
    """The settings that keep packets from being forwarded: problem text by subject.

    `forwards`: whether the node forwards, by IP version that the overlay uses. `closed`: the links towards the
    underlay whose own IPv4 forwarding is 0.
    """
    problems = {
        str(version): f"the node does not forward IPv{version}: containers reach only their own bridge"
        for version, on in sorted(forwards.items())
        if not on
    }
    if forwards.get(4):
        for link in closed:
            problems[link] = f"net.ipv4.conf.{link}.forwarding is 0: no answer from there reaches a container"
    return problems


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
