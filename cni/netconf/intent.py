"""The request of an ADD: reads every source and chooses by precedence.

For what says where a container belongs (service, mode, isolation network) a pod annotation wins over a label in
`args.cni.labels`, that over an annotation of the pod's Namespace, and that over the configuration, as far as the
configuration and the Namespace let it (`policy.py`). For address and hardware address `runtimeConfig` wins over
`args.cni`, and that over CNI_ARGS (CONVENTIONS.md). For DNS each member that `runtimeConfig.dns` gives replaces the
configuration's.
"""

import msgspec

from cni.errors import CniError, InvalidConfig, InvalidEnvironment
from cni.isolation import (
    ATTACH_LABEL,
    MODE_LABEL,
    MODES,
    NETWORK_LABEL,
    SERVICE_LABEL,
    isolation_network,
    mode_of_label,
)
from cni.netconf import policy
from cni.netconf.addresses import Address, parse_cidr, parse_ip, parse_mac
from cni.netconf.capabilities import aliases_of
from cni.netconf.configuration import NetConf
from cni.netconf.decode import show
from cni.netconf.environment import Call, check_args
from cni.netconf.template import placeholders, substitute
from cni.netconf.types import DNS, Route, parsed
from cni.netconf.values import check_attach, check_line, check_service
from cni.openings import NOTHING, ListedOpenings


class Requested(msgspec.Struct, frozen=True):
    """A requested address; if it is not available the ADD fails."""

    address: str  # in its canonical form
    prefix: int | None = None  # the length that was written with it, which need not be the subnet's


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of the attachment to make."""

    service: str
    mode: str
    attach: str = ""  # one of ATTACH_KINDS; "" is that of the service
    isolation_network: str | None  # None is none; "" is a network of that name
    join_global: bool = False
    ephemeral: bool = False
    mtu: int = 0  # bytes; 0 is "as the underlay allows"
    mac: str = ""  # lower case, colons; empty is any
    addresses: tuple[Requested, ...] = ()  # at most one of each family
    dns: DNS | None = None  # None leaves it to the daemon's settings
    routes: tuple[Route, ...] = ()
    opens: ListedOpenings = NOTHING  # what passes between isolation networks by this list
    aliases: tuple[str, ...] = ()  # as the runtime gave them: not each is a name that can be served
    labels: tuple[tuple[str, str], ...] = ()  # of `args.cni.labels`, sorted
    warnings: tuple[str, ...] = ()


NERDCTL_HOSTNAME = "NERDCTL_CNI_DHCP_HOSTNAME"
"""The key of CNI_ARGS in which nerdctl passes the container's host name."""


def intent(conf: NetConf, call: Call, words: policy.ClusterWords = policy.SILENT) -> Intent:
    """What `conf` and `call` ask for, where the cluster says `words`; raises `InvalidConfig`, or `InvalidEnvironment`
    where CNI_ARGS is at fault."""
    check_args(call, placeholders(conf.service or "", "service"))
    labels = {**conf.args.labels, **words.annotations, **conf.runtime.annotations}
    place = _place(conf, call, {**words.defaults, **labels})
    if labels.keys() & {SERVICE_LABEL, MODE_LABEL, NETWORK_LABEL, ATTACH_LABEL}:
        listed = _listed(conf, call, labels, words.defaults)
        policy.refuse(conf.annotations, conf.pinned, labels, listed, place)
        policy.refuse_by_namespace(words, labels, listed, place)
    return Intent(
        service=place.service,
        mode=place.mode,
        attach=place.attach,
        isolation_network=place.network,
        join_global=conf.join_global,
        ephemeral=conf.ephemeral,
        mtu=conf.mtu,
        mac=_mac(conf, call),
        addresses=_addresses(conf, call),
        dns=merge_dns(conf.dns, conf.runtime.dns),
        routes=conf.routes,
        opens=conf.opens,
        aliases=_aliases(conf, call),
        labels=tuple(sorted(conf.args.labels.items())),
        warnings=_warnings(labels),
    )


def merge_dns(configured: DNS | None, runtime: DNS) -> DNS | None:
    """The configuration's DNS, with each list that the runtime gave in place of the configured one."""
    if not runtime:
        return configured
    base = configured or DNS()
    return DNS(
        nameservers=runtime.nameservers or base.nameservers,
        domain=base.domain,
        search=runtime.search or base.search,
        options=runtime.options or base.options,
    )


def _aliases(conf: NetConf, call: Call) -> tuple[str, ...]:
    hostname = call.args.get(NERDCTL_HOSTNAME, "")
    return (*(aliases_of(conf.runtime.aliases, conf.name) or ()), *([hostname] if hostname else ()))


def _listed(conf: NetConf, call: Call, labels: dict[str, str], defaults: dict[str, str]) -> policy.Place:
    """Where the container belongs by the configuration and its Namespace's `defaults` alone. Where CNI_ARGS do not give
    what its service needs, and an annotation names another, the service is unknown ("")."""
    try:
        return _place(conf, call, defaults)
    except CniError:
        if SERVICE_LABEL not in labels:
            raise
        return policy.Place("", conf.mode, isolation_network(conf.isolation_network, conf.mode, ""), conf.attach)


def _place(conf: NetConf, call: Call, labels: dict[str, str]) -> policy.Place:
    """Where the container belongs by the configuration and `labels`."""
    service = _service(conf, call, labels)
    mode = mode_of_label(labels[MODE_LABEL]) if MODE_LABEL in labels else conf.mode
    explicit = labels.get(NETWORK_LABEL, conf.isolation_network)
    if explicit is not None:
        check_line(explicit, NETWORK_LABEL)
    attach = check_attach(labels[ATTACH_LABEL], ATTACH_LABEL) if ATTACH_LABEL in labels else conf.attach
    return policy.Place(service, mode, isolation_network(explicit, mode, service), attach)


def _service(conf: NetConf, call: Call, labels: dict[str, str]) -> str:
    if SERVICE_LABEL in labels:
        service, where = labels[SERVICE_LABEL], SERVICE_LABEL
    elif conf.service is not None:
        service, where = substitute(conf.service, call.args, "service"), "service"
    else:
        return conf.name
    check_service(service, where)
    return service


def _mac(conf: NetConf, call: Call) -> str:
    """The requested hardware address; an empty one, which some runtimes send, requests none."""
    sources: list[tuple[str, str | None, type[CniError]]] = [
        ("runtimeConfig.mac", conf.runtime.mac, InvalidConfig),
        ("args.cni.mac", conf.args.mac, InvalidConfig),
        ("CNI_ARGS: MAC", call.args.get("MAC"), InvalidEnvironment),
    ]
    for where, text, error in sources:
        if text:
            return parsed(parse_mac, text, where, error)
    return ""


def _addresses(conf: NetConf, call: Call) -> tuple[Requested, ...]:
    named = call.args.get("IP", "")
    sources: list[tuple[str, tuple[str, ...], type[CniError]]] = [
        ("runtimeConfig.ips", conf.runtime.ips or (), InvalidConfig),
        ("args.cni.ips", conf.args.ips or (), InvalidConfig),
        ("CNI_ARGS: IP", tuple(named.split(",")) if named else (), InvalidEnvironment),
    ]
    for where, texts, error in sources:
        if texts:
            return _requested(texts, where, error)
    return ()


def _requested(texts: tuple[str, ...], where: str, error: type[CniError]) -> tuple[Requested, ...]:
    by_version: dict[int, Requested] = {}
    for text in texts:
        address, prefix = parsed(_with_or_without_prefix, text, where, error)
        if address.is_unspecified or address.is_multicast or address.is_loopback or address.is_link_local:
            raise error(f"{where}: {show(text)} cannot be a container's address")
        if address.version in by_version:
            raise error(f"{where}: {show(text)} is a second address of its family, an interface gets one")
        by_version[address.version] = Requested(str(address), prefix)
    return tuple(by_version.values())


def _with_or_without_prefix(text: str) -> tuple[Address, int | None]:
    if "/" not in text:
        return parse_ip(text), None
    interface = parse_cidr(text)
    return interface.ip, interface.network.prefixlen


def _warnings(labels: dict[str, str]) -> tuple[str, ...]:
    mode = labels.get(MODE_LABEL)
    if mode is None or mode.strip().lower() in MODES:
        return ()
    return (f"{MODE_LABEL}: {show(mode)} is not one of {', '.join(MODES)}, taken as auto",)
