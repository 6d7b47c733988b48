"""The node's DNS as a whole: what results say of it, what `status` and `resolve` tell."""

from __future__ import annotations

from dataclasses import dataclass

from cni.daemon.dns.book import NameBook
from cni.daemon.dns.forward.forwarder import Forwarder
from cni.daemon.dns.handler import Handler
from cni.daemon.dns.host_resolver import HostResolver
from cni.daemon.dns.intercept import Intercept
from cni.daemon.dns.lookup import NameLookup
from cni.daemon.dns.node_names import NodeNames
from cni.daemon.dns.server import DnsServer
from cni.daemon.dns.visibility import Visibility
from cni.daemon.fence.status import FenceStatus
from cni.daemon.model.dns_members import of_attachment
from cni.daemon.model.records import Attachment
from cni.daemon.settings import Settings
from cni.daemon.state.tables import Tables

LONGEST_TTL = 5.0  # seconds that an answer may be kept


def ttl_of(cooldown: float) -> int:
    """Seconds that an answer may be kept: less than an address rests before it is given out again."""
    return int(min(LONGEST_TTL, cooldown / 2))


@dataclass(frozen=True, kw_only=True)
class DnsService:
    """The parts of the node's DNS. `server`: None where the settings turn it off; `forwarding` likewise. `intercept`
    and `host`: for containers and for programs of the host that ask other servers."""

    settings: Settings
    fence: FenceStatus
    registry: Tables
    book: NameBook
    names: NodeNames
    handler: Handler
    server: DnsServer | None
    forwarding: Forwarder | None
    intercept: Intercept
    host: HostResolver

    def offer(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The addresses at which the server answers at the port of DNS, and its search domains."""
        served = self.server.offered if self.server is not None else ()
        return served, self.names.zone().search() if served else ()

    def names_of(self, attachment: Attachment) -> list[str]:
        """The names of an attachment in full, its aliases without the zone; none where no DNS is served."""
        if self.server is None or attachment.state != "live":
            return []
        member, zone = of_attachment(attachment), self.names.zone().name
        return [name if name in member.aliases else f"{name}.{zone}" for name in member.names()]

    def lookup(self) -> NameLookup:
        """A lookup for one thread."""
        return new_lookup(self.settings, self.book, self.names, self.fence, self.registry)


def new_lookup(
    settings: Settings, book: NameBook, names: NodeNames, fence: FenceStatus, registry: Tables
) -> NameLookup:
    """A lookup for one thread."""
    refuse = settings.dns.hidden == "refused"
    visibility = Visibility(book, fence, registry)
    return NameLookup(book, visibility, names.current, ttl_of(settings.address_cooldown), refuse_hidden=refuse)
