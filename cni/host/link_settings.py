"""Settings of a link that the kernel takes by netlink, with the link's other changes in one send.

The same settings below /proc/sys/net cost more: the kernel compares each name that is looked up there with that of
every network namespace, and a write of `rp_filter` or `forwarding` sends a notification (RTM_NEWNETCONF). Netlink also
takes them where /proc/sys is read-only.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from cni.host import netlink as nl

IPV4_NUMBERS = {"forwarding": 1, "send_redirects": 6, "rp_filter": 8, "arp_ignore": 19, "arp_notify": 22}
"""The IPv4 settings of a link: their names below ipv4/conf, and their numbers (IPV4_DEVCONF_..., linux/ip.h)."""
GEN_MODE_EUI64, GEN_MODE_NONE = 0, 1
_IFLA_IFNAME, _IFLA_AF_SPEC = 3, 26
_IFLA_INET_CONF, _IFLA_INET6_ADDR_GEN_MODE = 1, 8
_AF_INET, _AF_INET6 = 2, 10
_NO_IPV6 = frozenset({errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL})


def ipv4_message(index: int, settings: Iterable[tuple[str, str]]) -> nl.Message:
    """Set IPv4 settings of a link: (name of `IPV4_NUMBERS`, value as in /proc/sys)."""
    return _ipv4(nl.ifinfo(index), settings, f"link {index}")


def set_ipv4(socket: nl.Netlink, name: str, setting: str, value: str) -> None:
    """Set an IPv4 setting, of `IPV4_NUMBERS`, of the link of that name. Raises NetlinkError."""
    socket.send([_ipv4(nl.ifinfo() + nl.text(_IFLA_IFNAME, name), [(setting, value)], name)])


def _ipv4(link: bytes, settings: Iterable[tuple[str, str]], what: str) -> nl.Message:
    chosen = [(IPV4_NUMBERS[name], int(value)) for name, value in settings]
    conf = nl.attribute(_IFLA_INET_CONF, b"".join(nl.u32(number, value) for number, value in chosen))
    body = link + nl.attribute(_IFLA_AF_SPEC, nl.attribute(_AF_INET, conf))
    return nl.Message(nl.RTM_SETLINK, 0, body, f"set IPv4 settings of {what}")


def gen_mode_message(index: int, mode: int) -> nl.Message:
    """Set which link-local address the kernel gives the link when the link comes up: before that. No error if the link
    has no IPv6."""
    return _gen_mode(nl.ifinfo(index), mode, f"link {index}", _NO_IPV6)


def set_gen_mode(socket: nl.Netlink, name: str, mode: int) -> None:
    """`gen_mode_message` for the link of that name. No error if there is none. Raises NetlinkError."""
    gone = frozenset({errno.ENODEV})
    socket.send([_gen_mode(nl.ifinfo() + nl.text(_IFLA_IFNAME, name), mode, name, _NO_IPV6 | gone)])


def _gen_mode(link: bytes, mode: int, what: str, ignored: frozenset[int]) -> nl.Message:
    body = nl.attribute(_IFLA_AF_SPEC, nl.attribute(_AF_INET6, nl.u8(_IFLA_INET6_ADDR_GEN_MODE, mode)))
    return nl.Message(nl.RTM_SETLINK, 0, link + body, f"set addrgenmode of {what}", ignored)
