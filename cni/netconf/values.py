"""Validates the values of our own keys. An invalid value raises `InvalidConfig`, which names key and value."""

import msgspec

from cni.defaults import ATTACH_KINDS
from cni.errors import InvalidConfig, UnsupportedField
from cni.isolation import AUTO, MODES
from cni.netconf.addresses import parse_ip
from cni.netconf.decode import Fields, show, wrong_type
from cni.netconf.environment import is_plain_name
from cni.netconf.template import placeholders
from cni.netconf.types import DNS, Route, parsed, read_dns, read_route
from cni.openings import MOST, ListedOpenings, parse_reach, parse_sender

MTU_MIN = 576  # bytes: what every IPv4 host must take whole (RFC 791, 3.1)
MTU_MAX = 65535
SERVICE_LIMIT = 253  # bytes: as long as a DNS name may be
SOCKET_LIMIT = 107  # bytes: sun_path without its closing zero
RUN_DIR_LIMIT = 80  # bytes: leaves room for the names of the sockets inside
PLAIN_ROUTE = {"mtu": (0,), "advmss": (0,), "priority": (0,), "table": (0, 254), "scope": (0,)}
"""What a route of the configuration may say beside `dst` and `gw`: that it is the kind of route we make."""
PATH_LIMIT = 1024  # bytes: a quarter of PATH_MAX, so that what is put below fits too


class Attachment(msgspec.Struct, frozen=True):
    """One entry of the list of valid attachments that GC receives."""

    container_id: str
    ifname: str


def read_mode(fields: Fields) -> str:
    """`mode`, exactly one of MODES: a typing error must not disable isolation. Raises InvalidConfig."""
    mode = fields.text("mode")
    if mode is not None and mode not in MODES:
        raise InvalidConfig(f"mode: {show(mode)} is not one of {', '.join(MODES)}")
    return AUTO if mode is None else mode


def read_attach(fields: Fields) -> str | None:
    """`attach`, one of ATTACH_KINDS. Raises InvalidConfig."""
    attach = fields.text("attach")
    return None if attach is None else check_attach(attach, fields.where("attach"))


def check_attach(attach: str, where: str) -> str:
    """Check a kind of attach. Raises InvalidConfig."""
    if attach not in ATTACH_KINDS:
        raise InvalidConfig(f"{where}: {show(attach)} is not one of {', '.join(ATTACH_KINDS)}")
    return attach


def read_service(fields: Fields) -> str | None:
    """`service`, with its placeholders validated but not replaced."""
    service = fields.text("service")
    if service is not None:
        placeholders(service, fields.where("service"))
        check_service(service, fields.where("service"))
    return service


def check_service(service: str, where: str) -> None:
    """Check a service's name: a text of 1 to SERVICE_LIMIT bytes without control characters. Raises InvalidConfig."""
    check_line(service, where)
    if not service:
        raise InvalidConfig(f'{where}: "" cannot be the name of a service')
    if len(service.encode()) > SERVICE_LIMIT:
        raise InvalidConfig(f"{where}: {show(service)} is longer than {SERVICE_LIMIT} bytes")


def check_line(text: str, where: str) -> None:
    """Refuse control characters, NUL included, and text that cannot be encoded as UTF-8."""
    if any(char < " " or char == "\x7f" or "\ud800" <= char <= "\udfff" for char in text):
        raise InvalidConfig(f"{where}: {show(text)} holds a control character")


def read_isolation_network(fields: Fields) -> str | None:
    """`isolationNetwork`; the empty text is a valid name."""
    network = fields.text("isolationNetwork")
    if network is not None:
        check_line(network, fields.where("isolationNetwork"))
    return network


def read_mtu(fields: Fields) -> int | None:
    """`mtu` in bytes: 0 (from the underlay), or MTU_MIN to MTU_MAX. Raises InvalidConfig."""
    mtu = fields.integer("mtu")
    if mtu and not MTU_MIN <= mtu <= MTU_MAX:
        raise InvalidConfig(f"mtu: {show(mtu)} is neither 0 nor between {MTU_MIN} and {MTU_MAX}")
    return mtu


def read_dns_option(fields: Fields) -> DNS | None:
    """`dns`: name servers by address (a zone is allowed), the rest in words that fit a line of resolv.conf."""
    inner = fields.inner("dns")
    if inner is None:
        return None
    dns = read_dns(inner)
    check_servers(dns.nameservers, inner.where("nameservers"))
    for key, words in (("search", dns.search), ("options", dns.options)):
        for index, word in enumerate(words):
            check_word(word, f"{inner.where(key)}[{index}]")
    if dns.domain:
        check_word(dns.domain, inner.where("domain"))
    return dns


def read_runtime_dns(fields: Fields) -> DNS:
    """The capability `dns`, whose members have other names (`servers`, `searches`, `options`).

    Validated like the configuration's own DNS, except that empty words are dropped: some kubelets send "" on a node
    whose resolv.conf has `search .`.
    """
    lists = {}
    for key in ("servers", "searches", "options"):
        where = fields.where(key)
        lists[key] = tuple(word for word in fields.texts(key) or () if word)
        for word in lists[key]:
            check_word(word, where)
    check_servers(lists["servers"], fields.where("servers"))
    return DNS(nameservers=lists["servers"], search=lists["searches"], options=lists["options"])


def check_servers(servers: tuple[str, ...], where: str) -> None:
    """Check name servers: addresses, an IPv6 one with or without a zone. Raises InvalidConfig."""
    for index, server in enumerate(servers):
        address, mark, zone = server.partition("%")
        parsed(parse_ip, address, f"{where}[{index}]")
        if mark and not (":" in address and zone):
            raise InvalidConfig(f"{where}[{index}]: {show(server)}: not an IP address")
        check_word(server, f"{where}[{index}]")


def check_word(text: str, where: str) -> None:
    """Check a word: not empty, no white space, no control characters. Raises InvalidConfig."""
    check_line(text, where)
    if not text or any(char.isspace() for char in text):
        raise InvalidConfig(f"{where}: {show(text)} is not one word")


def read_routes(fields: Fields) -> tuple[Route, ...]:
    """`routes`, each to be set inside the container, in the main table and without metrics.

    Other members of a route that a result may have are refused (`UnsupportedField`) if they request something.
    """
    return tuple(_plain_route(route) for route in fields.objects("routes"))


def _plain_route(fields: Fields) -> Route:
    route = read_route(fields)
    for key, plain in PLAIN_ROUTE.items():
        value = getattr(route, key)
        if value is not None and value not in plain:
            raise UnsupportedField(f"{fields.where(key)}: {show(value)} is not supported, leave it out")
    return route


def read_openings(fields: Fields) -> ListedOpenings:
    """`isolation`: destinations and senders in the forms of `cni/openings.py`. Raises UndecodableContent for a wrong
    type, InvalidConfig for a wrong value or too many entries."""
    lists = {}
    for key, parse in (("reach", parse_reach), ("from", parse_sender)):
        lists[key] = fields.texts(key) or ()
        if len(lists[key]) > MOST:
            raise InvalidConfig(f"{fields.where(key)}: {len(lists[key])} entries, {MOST} are allowed")
        for index, text in enumerate(lists[key]):
            parsed(parse, text, f"{fields.where(key)}[{index}]")
    return ListedOpenings(reach=lists["reach"], from_=lists["from"])


def read_path(fields: Fields, key: str, limit: int = PATH_LIMIT) -> str | None:
    """An absolute path of at most `limit` bytes; the empty text is the same as none. Raises InvalidConfig."""
    path = fields.text(key)
    if not path:
        return None
    where = fields.where(key)
    check_line(path, where)
    if not path.startswith("/"):
        raise InvalidConfig(f"{where}: {show(path)} is not an absolute path")
    if len(path.encode()) > limit:
        raise InvalidConfig(f"{where}: {show(path)} is longer than {limit} bytes")
    return path


def read_socket(fields: Fields) -> str | None:
    """`overlayd.socket`."""
    overlayd = fields.inner("overlayd")
    return read_path(overlayd, "socket", SOCKET_LIMIT) if overlayd else None


def read_attachments(fields: Fields, keys: tuple[str, ...]) -> tuple[Attachment, ...] | None:
    """The list of valid attachments under the first of `keys` that is present, also with null.

    None means that no list was sent, so GC removes nothing; () means that no attachment is valid (the runtimes send an
    empty list as `null`). Raises `UndecodableContent` for a wrong type, `InvalidConfig` for an entry without a name: GC
    must not act on a list that is only partly understood.
    """
    for key in keys:
        if fields.has(key):
            return tuple(_attachment(attachment) for attachment in fields.objects(key))
    return None


def _attachment(fields: Fields) -> Attachment:
    attachment = Attachment(fields.text("containerID") or "", fields.text("ifname") or "")
    if not is_plain_name(attachment.container_id):
        raise InvalidConfig(f"{fields.where('containerID')}: {show(attachment.container_id)} names no container")
    if not attachment.ifname:
        raise InvalidConfig(f"{fields.where('ifname')}: {show(attachment.ifname)} names no interface")
    return attachment


def check_unused(fields: Fields) -> None:
    """The types of the keys that the specification defines and zlayer-cni does not use. `ipam` may have any members
    besides its `type`. Runtimes accept the switches of a list as true, false, "true" and "false"."""
    ipam = fields.inner("ipam")
    if ipam is not None:
        ipam.text("type")
    fields.boolean("ipMasq")
    fields.texts("cniVersions")
    fields.items("plugins")
    for key in ("disableCheck", "disableGC", "loadOnlyInlinedPlugins"):
        if fields.get(key) not in ("true", "false"):
            fields.boolean(key)


def read_capabilities(fields: Fields) -> None:
    """`capabilities` is for the runtime; only the types of its values (true or false) are checked here."""
    capabilities = fields.inner("capabilities")
    for key, value in (capabilities.raw if capabilities else {}).items():
        if value is not None and not isinstance(value, bool):
            raise wrong_type(fields.where(f"capabilities.{key}"), "true or false", value)
