"""Addresses, prefixes and hardware addresses, parsed as the runtimes' own parser does.

All functions raise `ValueError` with a short reason; the caller adds key, value and code.
"""

from ipaddress import IPv6Address, ip_address, ip_interface

from cni import addresses

Address = addresses.Address
Interface = addresses.Interface


def parse_ip(text: str) -> Address:
    """An address without prefix length and zone; IPv4-mapped IPv6 addresses are refused."""
    if "%" in text:
        raise ValueError("an address with a zone cannot be used here")
    try:
        address = ip_address(text)
    except ValueError:
        raise ValueError("not an IP address") from None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        raise ValueError("write an IPv4-mapped address as IPv4")
    return address


def parse_cidr(text: str) -> Interface:
    """An address with its prefix length, `10.1.2.3/24`; the host bits are kept. Raises ValueError."""
    address, slash, length = text.partition("/")
    if not slash or not (length.isascii() and length.isdigit() and len(length) <= 3):
        raise ValueError("not an address with a prefix length")
    bare = parse_ip(address)
    if int(length) > bare.max_prefixlen:
        raise ValueError(f"the prefix length goes up to {bare.max_prefixlen}")
    return ip_interface(f"{bare}/{int(length)}")


def parse_network(text: str) -> Interface:
    """A destination, `10.1.2.0/24`: a prefix without host bits. Raises ValueError."""
    interface = parse_cidr(text)
    if interface.ip != interface.network.network_address:
        raise ValueError(f"has host bits set; {interface.network} is meant?")
    return interface


def parse_mac(text: str) -> str:
    """A unicast Ethernet address as `02:00:5e:10:00:01`; dashes and Cisco's dots are accepted. Raises ValueError."""
    for mark, groups, digits in ((":", 6, 2), ("-", 6, 2), (".", 3, 4)):
        parts = text.split(mark)
        if len(parts) == groups and all(len(part) == digits for part in parts):
            break
    else:
        raise ValueError("not an Ethernet address of six bytes")
    if "".join(parts).strip("0123456789abcdefABCDEF"):
        raise ValueError("not hexadecimal")
    octets = bytes.fromhex("".join(parts))
    if octets[0] & 1:
        raise ValueError("a group address cannot be an interface's own")
    if not any(octets):
        raise ValueError("the zero address cannot be an interface's own")
    return octets.hex(":")
