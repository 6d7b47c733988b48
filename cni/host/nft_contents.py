"""The elements of all sets of a table as the kernel encodes them, read and packed: to see at once that none differs.

A daemon that starts compares some twenty elements for each attachment. Through libnftables and JSON a node with 1,000
attachments takes a second; the kernel's own bytes take a tenth of that. An element that another kernel encodes in
another way only looks different, and `Listing` (cni/daemon/fence/compare.py) then decides.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from ipaddress import ip_network

from cni.host import nft_dump, nft_elements, nlmsg
from cni.host.nft_elements import Element

Contents = dict[tuple[str, str], set[bytes]]
"""The encoded elements by (family, set); no entry for an empty set."""

_SET_NAME, _FLAGS, _ELEMENTS = 2, 3, 3  # NFTA_SET_NAME, NFTA_SET_FLAGS, NFTA_SET_ELEM_LIST_ELEMENTS
_ANONYMOUS = 0x1  # NFT_SET_ANONYMOUS
_END_OF_RANGE = nlmsg.attribute(3, (1).to_bytes(4, "big"))  # NFTA_SET_ELEM_FLAGS: NFT_SET_ELEM_INTERVAL_END


def read(dumper: nft_dump.Dumper, table: str) -> Contents | None:
    """The elements of the tables of that name, of family inet and bridge; None if a transaction was committed
    meanwhile. Without the sets that a rule contains, which are part of the rule. Raises OSError."""
    contents: Contents = {}
    try:
        for family, number in nft_dump.FAMILIES.items():
            sets = [nlmsg.attributes(data) for data in dumper.dump(nft_dump.SETS, number, table)]
            named = [of_set for of_set in sets if not int.from_bytes(of_set.get(_FLAGS, b""), "big") & _ANONYMOUS]
            for name in (nlmsg.string(of_set[_SET_NAME]) for of_set in named):
                found: set[bytes] = set()
                for data in dumper.dump(nft_dump.ELEMENTS, number, table, name):
                    found.update(element for _, element in nlmsg.items(nlmsg.attributes(data).get(_ELEMENTS, b"")))
                found -= _NO_RANGE
                if found:
                    contents[family, name] = found
    except nft_dump.Disturbed:
        return None
    return contents


def packed(elements: Iterable[Element]) -> Contents:
    """What `read` returns if the sets have exactly these elements. Raises ValueError for a key of no known form."""
    contents: Contents = {}
    for element in elements:
        of_set = contents.setdefault(element[:2], set())
        if element.is_range:
            of_set.update(_range(element.key))
        else:
            key = _key(nft_elements.pack_key(element.key))
            of_set.add(key + _verdict(element.verdict) if element.verdict else key)
    return contents


def _range(cidr: str) -> list[bytes]:
    """A range is its first address, and an end behind its last one; none if that is the highest."""
    network = ip_network(cidr)
    octets = network.max_prefixlen // 8
    behind = int(network.broadcast_address) + 1
    end = [_key(behind.to_bytes(octets, "big")) + _END_OF_RANGE] if behind < 1 << network.max_prefixlen else []
    return [_key(network.network_address.packed), *end]


def _key(key: bytes) -> bytes:
    return _head(len(key)) + key + bytes(-len(key) & 3)


@functools.cache
def _head(size: int) -> bytes:
    """The headers before a key of that length: NFTA_SET_ELEM_KEY, NFTA_DATA_VALUE."""
    return nlmsg.attribute(1, nlmsg.attribute(1, bytes(size)))[:8]


@functools.lru_cache(4096)
def _verdict(verdict: str) -> bytes:
    """NFTA_SET_ELEM_DATA with NFTA_DATA_VERDICT, or NFTA_DATA_VALUE for a MAC, without the flag for nested attributes,
    as the kernel writes it."""
    kind = 1 if ":" in verdict else 2
    return nlmsg.attribute(2, nlmsg.attribute(kind, nft_elements.pack_verdict(verdict)))


# libnftables adds the end of no range at address 0 to a set of ranges.
_NO_RANGE = frozenset(_key(bytes(size)) + _END_OF_RANGE for size in (4, 16))
