"""Whose a host end is: its name alone does not say, for it is 40 bits of a hash that anyone can compute.

A port carries its owner as the link's alias (`naming.owner_mark`). One without such an alias was made by an older
version, or its attach did not come to its end; then the MAC, which follows from the name, says that it is a port of
ours, and the records say whose.
"""

from __future__ import annotations

from cni import naming
from cni.daemon.model.records import Attachment, AttachmentKey
from cni.host.links import Link


def is_port_of(link: Link, key: AttachmentKey, host_mac: str) -> bool:
    """Whether the link is the host end of the attachment `key`, under whatever name; `host_mac` is that end's MAC.

    An unmarked link is taken for its by the MAC, or by a name that only this program makes: the caller knows from the
    records that the name is not another attachment's.
    """
    if link.kind != "veth":
        return False
    if link.alias.startswith(naming.OWNER):
        return link.alias == naming.owner_mark(*key)
    return link.mac == host_mac or link.name.startswith(naming.PREFIX)


def is_unmarked(link: Link, attachment: Attachment) -> bool:
    """Whether the link is the attachment's, and does not say so itself yet."""
    return not link.alias.startswith(naming.OWNER) and is_port_of(link, attachment.key, attachment.host_mac)
