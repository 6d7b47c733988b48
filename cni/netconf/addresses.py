"""Addresses, prefixes and hardware addresses, read the way the runtimes' own parser reads them.

All raise `ValueError` with a few words on what is wrong; the caller adds key, value and code.
"""

from ipaddress import IPv6Address, ip_address, ip_interface

from cni import addresses

Address = addresses.Address
Interface = addresses.Interface


def parse_ip(text: str) -> Address:
    """A bare address: no prefix, no zone, and not an IPv4 address in IPv6 clothes."""
    if "%" in text:
        raise ValueError("an address with a zone cannot be used here")
    try:
        found = ip_address(text)
    except ValueError:
        raise ValueError("not an IP address") from None
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        raise ValueError("write an IPv4-mapped address as IPv4")
    return found


def parse_cidr(text: str) -> Interface:
    """An address and its prefix length, `10.1.2.3/24`; the host bits stay."""
    address, slash, length = text.partition("/")
    if not slash or not (length.isascii() and length.isdigit() and len(length) <= 3):
        raise ValueError("not an address with a prefix length")
    bare = parse_ip(address)
    if int(length) > bare.max_prefixlen:
        raise ValueError(f"the prefix length goes up to {bare.max_prefixlen}")
    return ip_interface(f"{bare}/{int(length)}")


def parse_network(text: str) -> Interface:
    """A destination, `10.1.2.0/24`: a prefix without host bits."""
    found = parse_cidr(text)
    if found.ip != found.network.network_address:
        raise ValueError(f"has host bits set; {found.network} is meant?")
    return found


def parse_mac(text: str) -> str:
    """A unicast Ethernet address as `02:00:5e:10:00:01`; dashes and Cisco's dots are read too."""
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
