"""Which attachment owns a host end. The name alone does not tell: it is 40 bits of a hash that anyone can compute.

A port has its owner as the link's alias (`naming.owner_mark`). A port without the alias was made by an older version,
or its attach did not finish; then the MAC, which follows from the name, tells that it is a port of the overlay, and the
records tell whose.
"""

from __future__ import annotations

from cni import naming
from cni.daemon.model.records import Attachment, AttachmentKey
from cni.host.links import Link


def is_port_of(link: Link, key: AttachmentKey, host_mac: str) -> bool:
    """Whether the link is the host end of the attachment `key`, under any name; `host_mac`: the MAC of that end.

    A link without an owner mark counts as the attachment's if it has that MAC, or a name that only this program makes:
    the caller knows from the records that the name is not another attachment's.
    """
    if link.kind != "veth":
        return False
    if link.alias.startswith(naming.OWNER):
        return link.alias == naming.owner_mark(*key)
    return link.mac == host_mac or link.name.startswith(naming.PREFIX)


def is_unmarked(link: Link, attachment: Attachment) -> bool:
    """Whether the link is the attachment's host end and has no owner mark yet."""
    return not link.alias.startswith(naming.OWNER) and is_port_of(link, attachment.key, attachment.host_mac)
