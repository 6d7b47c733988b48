"""The tool's requests about names: what the DNS server answers to an asker, and what it withholds by which rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cni import answers, plugin_protocol
from cni.daemon.api import tool_why
from cni.daemon.api.tool_context import ToolContext
from cni.daemon.dns import wire
from cni.daemon.dns.lookup import Explained, NameLookup
from cni.daemon.dns.visibility import Asker
from cni.daemon.fence.explain import operands
from cni.daemon.fence.explain.endpoints import NODE, Ambiguous
from cni.daemon.model import dns_names
from cni.errors import InvalidConfig

FORWARDED, REFUSED, NODATA = "FORWARDED", "REFUSED", "NODATA"
CODES = {wire.NOERROR: "NOERROR", wire.NXDOMAIN: "NXDOMAIN", wire.REFUSED: REFUSED}


def summary(context: ToolContext) -> answers.Dns | None:
    """The node's DNS server; None where the settings turn it off."""
    dns = context.dns
    if dns.server is None:
        return None
    return answers.Dns(
        served=list(dns.server.served),
        zone=dns.names.zone().name,
        named=dns.book.size(),
        counts=dict(dns.handler.counts),
        forwarding=dns.forwarding.counts() if dns.forwarding is not None else {},
    )


def resolve(context: ToolContext, env: Mapping[str, str]) -> answers.Resolution:
    """What the server answers to SRC (the node without one) about the name DST. Raises InvalidConfig."""
    if context.dns.server is None:
        raise InvalidConfig("no DNS is served on this node: dns.serve is false")
    lookup = context.dns.lookup()
    label, asker = _asker(context, lookup, env.get(plugin_protocol.SRC) or NODE)
    text = env.get(plugin_protocol.DST, "")
    explained = [lookup.explain(labels, asker) for labels in _in_full(lookup, text)]
    best = next((each for each in explained if each.code == wire.NOERROR and each.addresses + each.names), None)
    return _resolution(context, text, label, best or next((e for e in explained if e.withheld), explained[-1]))


def _asker(context: ToolContext, lookup: NameLookup, word: str) -> tuple[str, Asker]:
    try:
        endpoints = operands.resolve(tool_why.view_of(context), word)
    except Ambiguous as error:
        raise InvalidConfig(str(error)) from error
    for endpoint in endpoints:
        asker = lookup.asker(endpoint.address) if endpoint.address else None
        if asker is not None:
            return f"{endpoint.address} ({endpoint.label})", asker
    raise InvalidConfig(f"{word!r} gets no answers from this node: it is outside the overlay")


def _in_full(lookup: NameLookup, text: str) -> Iterable[list[str]]:
    """The names that a resolver asks for, with the zone as its search domain. Raises InvalidConfig."""
    name = dns_names.dotted(text)
    if name is None:
        raise InvalidConfig(f"{text!r} is no name of labels of letters, digits and hyphens")
    labels, zone = name.split("."), lookup.zone.name.split(".")
    subject = lookup.subject(labels)
    if text.endswith(".") or (subject is not None and not subject.bare):
        return [labels]
    return [[*labels, *zone], labels]


def _resolution(context: ToolContext, text: str, asker: str, found: Explained) -> answers.Resolution:
    if found.code is None:
        code = FORWARDED if context.dns.forwarding is not None else REFUSED
    else:
        code = CODES[found.code]
        if found.code == wire.NOERROR and not found.addresses and not found.names:
            code = NODATA
    return answers.Resolution(
        name=text,
        asker=asker,
        code=code,
        ttl=found.ttl if code == "NOERROR" else None,
        addresses=list(found.addresses),
        names=list(found.names),
        withheld=[
            answers.Withheld(
                address=each.address,
                of=each.what,
                rule=answers.Rule(name=spot.name, family=spot.family, chain=spot.chain)
                if each.verdict is not None and (spot := each.verdict.spot)
                else None,
                reason=each.verdict.reason if each.verdict is not None else "the asker has no address of this family",
            )
            for each in found.withheld
        ],
    )
