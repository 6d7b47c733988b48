"""The answer to a question of one asker, from the names that the asker may see.

Of the kinds of names the first that the asker sees decides: a service or a container of one, an alias, a registered
name. What it does not see does not exist for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cni.daemon.dns import wire
from cni.daemon.dns.book import NameBook
from cni.daemon.dns.visibility import Asker, Visibility
from cni.daemon.dns.wire import Answer, Question
from cni.daemon.fence.explain.verdict import Verdict
from cni.daemon.model.dns_members import Member
from cni.daemon.model.dns_names import AGENT_KIND, NODE, SERVER, Subject, Zone

MOST_KEPT = 8192  # answers kept ready


@dataclass(frozen=True, slots=True)
class Found:
    """What is seen under one name. `addresses`: each once; `brief`: an address among them may go to another container
    at once; `withheld`: there is something that the asker does not see."""

    addresses: tuple[str, ...] = ()
    brief: bool = False
    withheld: bool = False


@dataclass(frozen=True, slots=True)
class Resolved:
    """An answer, and the fence's part in it. `withheld`: the name exists for others only."""

    answer: Answer
    withheld: bool = False


@dataclass(frozen=True, slots=True)
class Hidden:
    """An address that is withheld. `what`: who has it; `verdict`: None if the asker has no address of that family."""

    address: str
    what: str
    verdict: Verdict | None


@dataclass(frozen=True, slots=True)
class Explained:
    """An answer in words. `code`: None for a name that is not the overlay's; `names`: of an address."""

    code: int | None
    addresses: tuple[str, ...]
    names: tuple[str, ...]
    ttl: int
    withheld: tuple[Hidden, ...]


class NameLookup:
    """Answers questions about the overlay's names. For one thread."""

    def __init__(
        self, book: NameBook, visibility: Visibility, zone: Callable[[], Zone], ttl: int, refuse_hidden: bool
    ) -> None:
        """`ttl`: seconds that an answer may be kept; `refuse_hidden`: a name that the asker does not see is refused,
        instead of being answered as if it did not exist."""
        self._book, self._visibility, self._zone_now = book, visibility, zone
        self._ttl, self._refuse_hidden = ttl, refuse_hidden
        self._zone = zone()
        self._generation = -1
        self._kept: dict[tuple[object, bytes, int], Resolved | None] = {}

    @property
    def is_current(self) -> bool:
        """Whether nothing has changed since the last question, so that its answer still holds."""
        return self._generation == self._book.generation and self._visibility.is_current

    @property
    def is_whole(self) -> bool:
        """Whether a name that is not found does not exist: the names of other nodes are known."""
        return self._book.is_whole

    def asker(self, source: str) -> Asker | None:
        """Who has the source address; None outside the overlay."""
        if not self.is_current:
            self._renew()
        return self._visibility.asker(source)

    def _renew(self) -> None:
        # The number first: a change that comes meanwhile makes the next question renew again.
        self._generation = self._book.generation
        self._zone = self._zone_now()
        self._visibility.renew()
        self._kept.clear()

    def resolve(self, question: Question, asker: Asker) -> Resolved | None:
        """The answer; None for a name that is not the overlay's. `asker` is of the same moment."""
        key = (asker.klass, question.name, question.type)
        if key in self._kept:
            return self._kept[key]
        resolved = self._resolve(question, asker)
        # Of names that do not exist there are any number: only what exists, or is not ours, is worth keeping.
        if resolved is not None and resolved.answer.code == wire.NOERROR:
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            self._kept[key] = resolved
        return resolved

    def subject(self, labels: list[str]) -> Subject | None:
        """What a name is about; None if it is not the overlay's."""
        return self._zone.subject(labels)

    def _resolve(self, question: Question, asker: Asker) -> Resolved | None:
        labels = question.labels()
        subject = self._zone.subject(labels) if labels is not None else None
        if labels is None or subject is None:
            return self._registered_outside(question, asker, labels)
        if subject.relative is None:
            return self._reverse(question, asker, subject)
        if subject.relative == "":
            return Resolved(self._apex(question, subject))
        return self._inside(question, asker, subject, subject.relative)

    def _inside(self, question: Question, asker: Asker, subject: Subject, name: str) -> Resolved | None:
        """The answer about a name inside the zone."""
        found = self.find(name, asker)
        if found.addresses:
            return Resolved(self._addresses(question, found, subject.zone))
        if subject.bare and not (found.withheld and self._refuse_hidden):
            return None  # it may be a name of the host's own
        if name in (NODE, AGENT_KIND):
            return Resolved(self._nothing(subject.zone, wire.NOERROR))
        return Resolved(self._hidden(subject) if found.withheld else self._absent(subject), found.withheld)

    def _registered_outside(self, question: Question, asker: Asker, labels: list[str] | None) -> Resolved | None:
        """A name outside the zone that was registered as it is."""
        found = self._find_registered(".".join(labels), asker) if labels else Found()
        if found.addresses and labels:
            return Resolved(self._addresses(question, found, tuple(labels)))
        return None

    # --- finding -----------------------------------------------------------------------------------------------------

    def find(self, name: str, asker: Asker) -> Found:
        """What the asker sees under a name inside the zone."""
        withheld = False
        for found in self._kinds(name, asker):
            if found.addresses:
                return found
            withheld = withheld or found.withheld
        return Found(withheld=withheld)

    @property
    def zone(self) -> Zone:
        """The zone as of the last question."""
        return self._zone

    def explain(self, labels: list[str], asker: Asker) -> Explained:
        """What the asker is told about a name, of all address families, and what is withheld from it."""
        question = Question(0, 0, b"", wire.wire_name(labels), wire.ANY, wire.IN, None)
        resolved = self.resolve(question, asker)
        subject = self._zone.subject(labels)
        seen = self.find(subject.relative, asker) if subject is not None and subject.relative else Found()
        names: tuple[str, ...] = ()
        every: list[tuple[str, str, Member | None]] = []
        if subject is not None and subject.address is not None:
            member = self._book.at(subject.address)
            if resolved is not None and resolved.answer.code == wire.NOERROR:
                names = member.reverse_names() if member is not None else (self._book.node_at(subject.address),)
            else:
                every = [("its address", subject.address, member)]
        elif subject is not None and subject.relative:
            every = self._candidates(subject.relative, asker)
        elif subject is None and resolved is not None:
            seen = self._find_registered(".".join(labels), asker)
        withheld = [
            Hidden(address, what, self._visibility.verdict(asker, address, member))
            for what, address, member in every
            if address not in seen.addresses
        ]
        return Explained(
            code=resolved.answer.code if resolved is not None else None,
            addresses=seen.addresses if resolved is not None else (),
            names=tuple(f"{name}.{self._zone.name}" for name in names),
            ttl=0 if seen.brief else self._ttl,
            withheld=tuple(hidden for hidden in withheld if hidden.verdict is None or not hidden.verdict.allowed),
        )

    def _candidates(self, name: str, asker: Asker) -> list[tuple[str, str, Member | None]]:
        """Everything under a name inside the zone, seen or not: what it is, its address, and the member."""
        members = [*self._book.named(name), *(m for m in self._book.aliased(name) if _is_company(asker, m))]
        found: list[tuple[str, str, Member | None]] = [
            (".".join(filter(None, (member.container, member.service))), address, member)
            for member in members
            for address in member.addresses
        ]
        own, _, kind = name.rpartition(".")
        found += [(name, address, None) for address in (self._book.node(own) if kind == NODE else ())]
        return found + [("registered", address, None) for address in self._book.registered(name)]

    def _kinds(self, name: str, asker: Asker) -> Iterable[Found]:
        yield self._of_members(self._book.named(name), asker)
        yield self._of_members((m for m in self._book.aliased(name) if _is_company(asker, m)), asker)
        if name == SERVER:
            yield self._of_addresses(self._visibility.own_addresses, asker)
        own, _, kind = name.rpartition(".")
        if kind == NODE and own:
            yield self._of_addresses(self._book.node(own), asker)
        yield self._find_registered(name, asker)

    def _find_registered(self, name: str, asker: Asker) -> Found:
        return self._of_addresses(self._book.registered(name), asker)

    def _of_members(self, members: Iterable[Member], asker: Asker) -> Found:
        seen: dict[str, None] = {}
        brief = withheld = False
        for member in members:
            for address in member.addresses:
                if self._visibility.sees(asker, member, address):
                    seen[address] = None
                    brief = brief or member.asked
                else:
                    withheld = True
        return Found(tuple(seen), brief, withheld)

    def _of_addresses(self, addresses: Iterable[str], asker: Asker) -> Found:
        each = list(addresses)
        seen = tuple(address for address in each if self._visibility.sees_address(asker, address))
        members = [self._book.at(address) for address in seen]
        return Found(seen, any(member is not None and member.asked for member in members), len(seen) < len(each))

    # --- answers -----------------------------------------------------------------------------------------------------

    def _addresses(self, question: Question, found: Found, zone: tuple[str, ...]) -> Answer:
        ttl = 0 if found.brief else self._ttl
        kinds = {wire.A: (4,), wire.AAAA: (6,), wire.ANY: (4, 6)}.get(question.type, ())
        fitting = [address for address in found.addresses if (6 if ":" in address else 4) in kinds]
        if not fitting:
            return self._nothing(zone, wire.NOERROR)
        return Answer.of([wire.address_record(address, ttl) for address in fitting])

    def _reverse(self, question: Question, asker: Asker, subject: Subject) -> Resolved:
        if subject.address is None:
            return Resolved(self._nothing(subject.zone, wire.NOERROR))
        member = self._book.at(subject.address)
        if member is not None:
            names, seen = member.reverse_names(), self._visibility.sees(asker, member, subject.address)
        else:
            node = self._book.node_at(subject.address)
            names = (f"{node}.{NODE}",) if node else ()
            seen = bool(node) and self._visibility.sees_address(asker, subject.address)
        if not names or not seen:
            withheld = bool(names)
            return Resolved(self._hidden(subject) if withheld else self._absent(subject), withheld)
        if question.type not in (wire.PTR, wire.ANY):
            return Resolved(self._nothing(subject.zone, wire.NOERROR))
        ttl = 0 if member is not None and member.asked else self._ttl
        zone = self._zone.name.split(".")
        targets = [wire.wire_name([*name.split("."), *zone]) for name in names]
        return Resolved(Answer.of([wire.record(wire.PTR, ttl, target) for target in targets]))

    def _apex(self, question: Question, subject: Subject) -> Answer:
        if question.type == wire.SOA:
            return Answer.of([self._start_of_authority(subject.zone)])
        if question.type == wire.NS:
            return Answer.of([wire.record(wire.NS, self._ttl, self._server())])
        return self._nothing(subject.zone, wire.NOERROR)

    def _absent(self, subject: Subject) -> Answer:
        return self._nothing(subject.zone, wire.NXDOMAIN)

    def _hidden(self, subject: Subject) -> Answer:
        return Answer(wire.REFUSED) if self._refuse_hidden else self._absent(subject)

    def _nothing(self, zone: tuple[str, ...], code: int) -> Answer:
        return Answer(code, authority=self._start_of_authority(zone))

    def _start_of_authority(self, zone: tuple[str, ...]) -> bytes:
        return wire.start_of_authority(wire.wire_name(zone), self._server(), self._generation, self._ttl)

    def _server(self) -> bytes:
        return wire.wire_name([SERVER, *self._zone.name.split(".")])


def _is_company(asker: Asker, member: Member) -> bool:
    """Whether an alias of the member is the asker's as well: both are of one service, or in one isolation network."""
    if asker.member is not None and asker.member.service == member.service:
        return True
    return member.network is not None and asker.any_endpoint.network == member.network
