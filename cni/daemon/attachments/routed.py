"""A routed attachment as the kernel's two ends of it. Pure."""

from __future__ import annotations

import ipaddress

from cni.daemon.model.records import Attachment
from cni.host.ports import GatewayEnd
from cni.host.routed_ports import RoutedEnd


def gateway_end(attachment: Attachment) -> GatewayEnd:
    """The gateways, as the container's end needs them."""
    gateways = tuple(ipaddress.ip_address(assigned.gateway) for assigned in attachment.addresses)
    return GatewayEnd(gateways, attachment.host_mac)


def routed_end(attachment: Attachment, index: int) -> RoutedEnd:
    """The host end, whose index is `index`."""
    return RoutedEnd(
        index,
        attachment.host_veth,
        tuple(ipaddress.ip_address(ip) for ip in attachment.ips),
        tuple(ipaddress.ip_address(assigned.gateway) for assigned in attachment.addresses),
        attachment.mac,
    )
