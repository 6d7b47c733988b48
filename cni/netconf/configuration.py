"""The network configuration of one call: bytes on standard input become a `NetConf`.

There are three steps, because other checks come between them: `decode_document` (JSON, network, version),
`check_version`, and `interpret` (our own keys). `cni.netconf.request` calls all in order.

A wrong type is code 6 and a wrong value code 7; both name key and value. An unknown key is a warning, so that a newer
configuration works with an older plugin after a downgrade. For DEL every error in our own keys is a warning: a
container must be removable also if its configuration was broken after the ADD.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from cni import defaults
from cni.errors import CniError, InvalidConfig, UndecodableContent
from cni.isolation import AUTO
from cni.netconf import values
from cni.netconf.capabilities import (
    ALIASES,
    RUNTIME_KEYS,
    WITHOUT_EFFECT,
    ConventionArgs,
    RuntimeConfig,
    aliases_of,
    read_args,
    read_runtime_config,
)
from cni.netconf.decode import Fields, decode_json, fold, show
from cni.netconf.environment import is_plain_name
from cni.netconf.policy import ANNOTATIONS_KEYS, DECIDABLE, Policy, read_policy
from cni.netconf.result import parse_result
from cni.netconf.types import DNS, DNS_KEYS, ROUTE_KEYS, Result, Route
from cni.netconf.values import Attachment
from cni.netconf.versions import OLDEST, SUPPORTED
from cni.openings import NOTHING, ListedOpenings

OWN_KEYS = (
    *("service", "mode", "attach", "isolationNetwork", "joinGlobal", "ephemeral", "mtu", "dns", "routes"),
    *("isolation", "annotations"),
)
PLACE_KEYS = ("overlayd", "autostart", "runDir", "dataDir")
"""The keys that decide which daemon is spoken to."""

GENERAL_KEYS = ("cniVersion", "cniVersions", "name", "type")
CALL_KEYS = ("capabilities", "runtimeConfig", "args", "prevResult")
LIST_KEYS = ("disableCheck", "disableGC", "loadOnlyInlinedPlugins", "plugins")
IGNORED_KEYS = ("ipam", "ipMasq")
GC_KEYS = ("cni.dev/valid-attachments", "cni.dev/attachments")

KNOWN_KEYS = fold(*OWN_KEYS, *PLACE_KEYS, *GENERAL_KEYS, *CALL_KEYS, *LIST_KEYS, *IGNORED_KEYS, *GC_KEYS)
OVERLAYD_KEYS = fold("socket")
ISOLATION_KEYS = fold("reach", "from")

UNKNOWN_KEY = "unknown key, ignored"

Tolerate = Callable[[CniError], None]


class NetConf(msgspec.Struct, frozen=True, kw_only=True):
    """One plugin's configuration for one call. A member that was not given is None."""

    name: str
    version: str = OLDEST
    type: str = ""
    service: str | None = None  # with its ${...} still in it
    mode: str = AUTO
    attach: str = ""  # one of ATTACH_KINDS; "" is that of the service
    isolation_network: str | None = None
    join_global: bool = False
    ephemeral: bool = False
    mtu: int = 0  # bytes; 0 is "as the underlay allows"
    dns: DNS | None = None
    routes: tuple[Route, ...] = ()
    opens: ListedOpenings = NOTHING
    socket: str = ""  # of an overlay daemon that is not ours; empty is ours
    autostart: bool = True
    run_dir: str = defaults.RUN_DIR
    data_dir: str = defaults.DATA_DIR
    runtime: RuntimeConfig = RuntimeConfig()
    args: ConventionArgs = ConventionArgs()
    prev_result: Result | None = None
    annotations: Policy = Policy()
    pinned: frozenset[str] = frozenset()  # of policy.DECIDABLE: the keys that were given
    valid_attachments: tuple[Attachment, ...] | None = None  # GC: None judges nothing, () keeps nothing
    warnings: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()  # paths of unknown keys; `warnings` names them already


class Document(msgspec.Struct, frozen=True):
    """A decoded configuration; only its name and the type of its version are validated."""

    fields: Fields
    name: str
    version: str


def decode_document(stdin: bytes) -> Document:
    """Decode, and validate the name and the version's type. Raises UndecodableContent, InvalidConfig, with the codes
    and texts of the reference's `pkg/skel`."""
    try:
        raw = decode_json(stdin)
        if raw is not None and not isinstance(raw, dict):
            raise UndecodableContent(f"expected an object, found {show(raw)}")
        fields = Fields(raw or {})
        name, version = fields.text("name"), fields.text("cniVersion")
    except UndecodableContent as error:
        raise UndecodableContent(f"error unmarshall network config: {error.msg}") from None
    if not name:
        raise InvalidConfig("missing network name")
    if not is_plain_name(name):
        raise InvalidConfig("invalid characters found in network name", name)
    return Document(fields, name, version or OLDEST)


def interpret(document: Document, verb: str, tolerate: Tolerate | None = None) -> NetConf:
    """Read our own keys; raises `UndecodableContent` for a wrong type, `InvalidConfig` for a wrong value.

    With `tolerate` every error is passed to it and the key counts as absent.
    """
    unknown = unknown_keys(document.fields)
    warnings = [f"{path}: {UNKNOWN_KEY}" for path in unknown]
    if tolerate is None and verb == "DEL":

        def tolerate(error: CniError) -> None:
            warnings.append(f"ignored: {error.msg}")

    members: dict[str, Any] = {}
    for member, read in _readers(document, verb).items():
        try:
            value = read()
        except CniError as error:
            if tolerate is None:
                raise
            tolerate(error)
        else:
            if value is not None:
                members[member] = value
    if verb == "CHECK" and "prev_result" not in members:
        raise InvalidConfig("Required prevResult missing")
    given = {"service": "service", "mode": "mode", "isolationNetwork": "isolation_network"}
    given["attach"] = "attach"
    pinned = frozenset(key for key in DECIDABLE if given[key] in members and document.fields.get(key) is not None)
    conf = NetConf(name=document.name, version=document.version, unknown=unknown, pinned=pinned, **members)
    return msgspec.structs.replace(conf, warnings=(*warnings, *_without_effect(document.fields, conf)))


def unknown_keys(fields: Fields) -> tuple[str, ...]:
    """The paths of the keys that neither zlayer-cni nor the specification defines, including members of our keys.

    Objects that other programs may extend are not searched: `args` (by the conventions), `ipam`, results.
    """
    unknown = [path for path in fields.unknown(KNOWN_KEYS) if not path.casefold().startswith("cni.dev/")]
    inner = {
        "overlayd": OVERLAYD_KEYS,
        "dns": DNS_KEYS,
        "isolation": ISOLATION_KEYS,
        "runtimeConfig": RUNTIME_KEYS,
        "annotations": ANNOTATIONS_KEYS,
    }
    for key, members in inner.items():
        unknown += _unknown_inside(fields, key, members)
    routes = fields.raw_value("routes")
    for index, route in enumerate(routes if isinstance(routes, list) else []):
        if isinstance(route, dict):
            unknown += Fields(route, f"routes[{index}]").unknown(ROUTE_KEYS)
    return tuple(unknown)


def _unknown_inside(fields: Fields, key: str, members: frozenset[str]) -> tuple[str, ...]:
    value = fields.raw_value(key)
    return Fields(value, key).unknown(members) if isinstance(value, dict) else ()


def _readers(document: Document, verb: str) -> dict[str, Callable[[], object]]:
    """The reader of each member of NetConf, in the order in which errors are reported."""
    fields = document.fields
    return {
        "type": lambda: fields.text("type"),
        "socket": lambda: values.read_socket(fields),
        "autostart": lambda: fields.boolean("autostart"),
        "run_dir": lambda: values.read_path(fields, "runDir", values.RUN_DIR_LIMIT),
        "data_dir": lambda: values.read_path(fields, "dataDir"),
        "service": lambda: values.read_service(fields),
        "mode": lambda: values.read_mode(fields),
        "attach": lambda: values.read_attach(fields),
        "isolation_network": lambda: values.read_isolation_network(fields),
        "join_global": lambda: fields.boolean("joinGlobal"),
        "ephemeral": lambda: fields.boolean("ephemeral"),
        "mtu": lambda: values.read_mtu(fields),
        "dns": lambda: values.read_dns_option(fields),
        "routes": lambda: values.read_routes(fields),
        "opens": lambda: _inner(fields, "isolation", values.read_openings),
        "annotations": lambda: _inner(fields, "annotations", read_policy),
        "capabilities": lambda: values.read_capabilities(fields),
        "unused": lambda: values.check_unused(fields),
        "runtime": lambda: _inner(fields, "runtimeConfig", read_runtime_config),
        "args": lambda: _inner(fields, "args", read_args),
        "prev_result": lambda: _prev_result(document),
        "valid_attachments": lambda: values.read_attachments(fields, GC_KEYS) if verb == "GC" else None,
    }


def _inner(fields: Fields, key: str, read: Callable[[Fields], object]) -> object:
    inner = fields.inner(key)
    return None if inner is None else read(inner)


def _prev_result(document: Document) -> Result | None:
    value = document.fields.get("prevResult")
    # A version that is not ours has been refused already, where it matters.
    if value is None or document.version not in SUPPORTED:
        return None
    return parse_result(document.version, value)


def _without_effect(fields: Fields, conf: NetConf) -> list[str]:
    """Warnings about requested features that are not implemented."""
    ours = [key for key in IGNORED_KEYS if fields.raw_value(key) not in (None, {})]
    aliases = ""
    if conf.runtime.aliases is not None and conf.socket:
        aliases = "the overlay daemon serves no names"
    elif aliases_of(conf.runtime.aliases, conf.name) is None:
        aliases = "it is no list of names"
    return [
        *(f"{key}: has no effect here, the overlay daemon sees to addresses and masquerade" for key in ours),
        *([f"runtimeConfig.{ALIASES}: has no effect here, {aliases}"] if aliases else ()),
        *(f"runtimeConfig.{key}: has no effect here, {WITHOUT_EFFECT[key]}" for key in conf.runtime.without_effect),
    ]
