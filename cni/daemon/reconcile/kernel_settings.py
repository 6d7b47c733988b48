"""What the node's kernel settings come to, and what is wrong with them. Pure.

The kernel combines a link's setting with that of `all`, each in its own way: IPv4 forwarding is the link's alone, by
which a packet comes in; send_redirects is on if either is; of arp_ignore and rp_filter the larger counts; of accept_dad
too. ip_forward and a write to `all` set every link and `default` once, and links may differ afterwards.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

ARP_SILENT = 8  # arp_ignore: no address of the host is answered for
ARP_STRICTEST = 2  # the largest that answers for the gateway, and for no address of another link


def forwarding_off(forwards: Mapping[int, bool], closed: Collection[str]) -> dict[str, str]:
    """What keeps packets from being forwarded, by subject. `forwards`: by IP version that the overlay uses; `closed`:
    the links that lead out and whose own IPv4 setting is 0."""
    found = {
        str(version): f"the node does not forward IPv{version}: containers reach only their own bridge"
        for version, on in sorted(forwards.items())
        if not on
    }
    if forwards.get(4):
        for link in closed:
            found[link] = f"net.ipv4.conf.{link}.forwarding is 0: no answer from there reaches a container"
    return found


def overruled(arp_ignore: int) -> dict[str, str]:
    """The settings of `all` that overrule our links', by name. `arp_ignore`: what it comes to on our bridges."""
    if arp_ignore <= ARP_STRICTEST:
        return {}
    does = "the host answers there for its other addresses as well"
    if arp_ignore == ARP_SILENT:
        does = "no gateway is answered for, and containers leave their bridge no more"
    said = f"net.ipv4.conf.all.arp_ignore is {arp_ignore} and overrules that of the overlay's bridges: {does}"
    return {"arp_ignore": said}
