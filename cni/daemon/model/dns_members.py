"""What has a name on the overlay: containers and guests of this node and of others, as values. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cni.daemon.model.dns_names import container_name, label
from cni.daemon.model.records import Attachment, encode_key

Place = Literal["container", "guest", "remote"]
MOST_ALIASES = 64  # of one attachment; a runtime sends a few


@dataclass(frozen=True, slots=True)
class Member:
    """One attachment, guest, or member on another node, as its names see it.

    `key` identifies it among all; `service`, `container`, `aliases`: labels, "" where the text is none; `network`: its
    isolation network; `id`: of the container; `asked`: its address was asked for by name, so that another container may
    have it at once after it; `attachment`: of a container of this node.
    """

    key: str
    place: Place
    service: str
    container: str
    addresses: tuple[str, ...]
    network: str | None = None
    aliases: tuple[str, ...] = ()
    id: str = ""
    asked: bool = False
    attachment: Attachment | None = None

    def names(self) -> tuple[str, ...]:
        """The names inside the zone, the service's first."""
        own = f"{self.container}.{self.service}" if self.container and self.service else ""
        return tuple(dict.fromkeys(name for name in (self.service, own, *self.aliases) if name))

    def reverse_names(self) -> tuple[str, ...]:
        """The name inside the zone that an address of the member leads back to: the container's, else the service's."""
        return self.names()[1:2] if self.container and self.service else self.names()[:1]


def of_attachment(attachment: Attachment) -> Member:
    """The member that an attachment is."""
    name = container_name(attachment.pod, attachment.container)
    return Member(
        key=encode_key(attachment.key),
        place="container",
        service=label(attachment.service) or "",
        container=label(name) or "",
        addresses=attachment.ips,
        network=attachment.isolation,
        aliases=labels_of(_aliases(attachment)),
        id=attachment.container,
        asked=attachment.asked,
        attachment=attachment,
    )


def _aliases(attachment: Attachment) -> tuple[str, ...]:
    """The aliases, with the container's own name where a runtime gives a name without a namespace (podman): there it
    names the container on its network, as an alias does."""
    namespace, _, name = attachment.pod.rpartition("/")
    return attachment.aliases if namespace or not name else (name, *attachment.aliases)


def of_guest(name: str, service: str, address: str, network: str | None) -> Member:
    """The member that a guest is."""
    return Member(
        key=f"guest:{name}",
        place="guest",
        service=label(service) or "",
        container=label(container_name("", name)) or "",
        addresses=(address,),
        network=network,
        id=name,
    )


def labels_of(aliases: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the aliases that are labels, in lower case, each once, at most `MOST_ALIASES`."""
    return tuple(dict.fromkeys(found for alias in aliases if (found := label(alias))))[:MOST_ALIASES]


def not_served(attachment: Attachment) -> tuple[str, ...]:
    """The texts that an attachment is called by and that are no labels."""
    texts = (attachment.service, container_name(attachment.pod, attachment.container), *attachment.aliases)
    return tuple(dict.fromkeys(text for text in texts if label(text) is None))
