"""The daemon's YAML, read once into a typed value. Every key is optional; an unknown key is an error.

The file is the one of `--config FILE`; else `overlayd.yaml` in the data directory; else, for the default data directory
only, /etc/zlayer-cni/overlayd.yaml; else the defaults below apply. conf/overlayd.yaml documents the keys.
"""

from __future__ import annotations

import copy
import difflib
import ipaddress
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
import yaml

from cni import addresses, defaults
from cni.daemon.model import keys, yaml_lines
from cni.daemon.model.endpoints import LONGEST_NAME, split_endpoint
from cni.errors import InvalidConfig
from cni.overlay.address import network as network_of
from cni.printable import printable
from cni.secret import Secret

SYSTEM_FILE = "/etc/zlayer-cni/overlayd.yaml"

MOST_FAULTS = 20
JUDGES = {
    "cluster_cidr": ("cluster_cidr6", "slice_cidr", "service_cidr"),
    "cluster_cidr6": ("slice_cidr", "service_cidr"),
    "wireguard_engine": ("underlay",),
}
"""Keys by which others are judged: without the former there is no verdict on the latter."""
NOT_QUOTED = ("cluster",)
"""Below these keys no error quotes a value: it may be a secret in the wrong place."""

Unsigned = Literal["accept", "refuse"]
LogLevel = Literal["debug", "info", "warning", "error"]
Engine = Literal["auto", "kernel", "wireguard-go", "boringtun-cli", "none"]
Underlay = Literal["routed"]
Address = addresses.Address
Network = addresses.Network


class Dns(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `dns` of every result, unless the conflist has its own."""

    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    domain: str = ""


class StaticPeer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One peer of this node's WireGuard device, for meshes without a cluster. `endpoint`: `host:port`, a name is
    resolved repeatedly; without an endpoint the peer sends the first handshake. `endpoints`: further ones, which are
    tried in turn while the peer does not answer. `keepalive`: seconds, 0 for none."""

    public_key: str
    endpoint: str = ""
    endpoints: Annotated[tuple[str, ...], msgspec.Meta(max_length=32)] = ()
    allowed_ips: tuple[str, ...]
    keepalive: Annotated[int, msgspec.Meta(ge=0, le=65535)] = defaults.KEEPALIVE
    name: str = ""


class Etcd(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The access to the cluster's etcd. `lease`: how long a node document lasts without renewal; `grace`: how long an
    offline node stays a peer afterwards. Times in seconds."""

    endpoints: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    user: str = ""
    password: Secret = Secret()
    password_file: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    prefix: str = "/zlayer-cni"
    lease: Annotated[int, msgspec.Meta(ge=5, le=3600)] = 30
    grace: Annotated[int, msgspec.Meta(ge=0, le=86400)] = 300


class Cluster(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The store of the cluster. `unsigned_nodes`: whether documents of nodes whose version does not sign are
    accepted."""

    etcd: Etcd
    unsigned_nodes: Unsigned = "accept"


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One node's settings. Ranges are checked by `parse`; times are in seconds."""

    deployment: str = "zlayer"
    instance_id: str | int = "0"
    node_id: int = 0
    cluster_cidr: str = "10.200.0.0/16"
    cluster_cidr6: str | None = None
    slice_cidr: str | None = None
    wg_port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = defaults.WG_PORT
    wireguard_engine: Engine = "auto"
    underlay: Underlay | None = None
    service_cidr: str | None = None
    advertise: tuple[str, ...] = ()
    peers: tuple[StaticPeer, ...] = ()
    extra_routes: tuple[str, ...] = ()
    cluster: Cluster | None = None
    data_dir: str = defaults.DATA_DIR
    run_dir: str = defaults.RUN_DIR
    overlay_socket: str | None = None
    dns: Dns = Dns()
    masquerade: bool = True
    mtu: Annotated[int, msgspec.Meta(ge=1280, le=65535)] | None = None
    new_services_per_minute: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 300
    idle_services: Annotated[int, msgspec.Meta(ge=0, le=65536)] = 64
    address_cooldown: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 10.0
    log_level: LogLevel = "info"

    @property
    def cidrs(self) -> tuple[str, ...]:
        """The cluster's ranges, the primary IP version first."""
        return (self.cluster_cidr, self.cluster_cidr6) if self.cluster_cidr6 else (self.cluster_cidr,)


class FaultySettings(InvalidConfig):
    """Settings that were read and cannot be used; `faults`: each with key, value and line."""

    def __init__(self, name: str, faults: Sequence[str]) -> None:
        super().__init__(f"{name}: {'; '.join(faults)}")
        self.faults = tuple(faults)


def load(path: str) -> Settings:
    """The settings in the file `path`. Raises InvalidConfig that names the file and the fault."""
    try:
        text = Path(path).read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"cannot read {path}: {error}") from error
    return parse(text, path)


def locate(config: str | None, data_dir: str | None) -> str | None:
    """The file that a daemon started with these options reads (see the module's docstring); None if there is none."""
    if config is not None:
        return config
    candidates = [Path(data_dir or defaults.DATA_DIR, "overlayd.yaml")]
    if data_dir in (None, defaults.DATA_DIR):
        candidates.append(Path(SYSTEM_FILE))
    return next((str(candidate) for candidate in candidates if candidate.is_file()), None)


def find(config: str | None, data_dir: str | None) -> Settings:
    """The settings of a daemon started with these options. Raises InvalidConfig."""
    path = locate(config, data_dir)
    return load(path) if path is not None else Settings()


def parse(text: str, name: str = "settings") -> Settings:
    """The settings of the YAML `text`. Raises InvalidConfig that names key and value, or the line, on one line."""
    try:
        return _parse(text, name)
    except FaultySettings:
        raise
    except InvalidConfig as error:
        # A quoted value may have line breaks and escapes, which would forge lines of the log.
        raise InvalidConfig(printable(error.msg), error.details) from error


def _parse(text: str, name: str) -> Settings:
    try:
        document = yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InvalidConfig(f"{name}: not YAML: {_on_one_line(error)}") from error
    if document is None:
        return Settings()
    if not isinstance(document, dict):
        raise InvalidConfig(f"{name}: a mapping of keys to values is wanted, not {_kind(document)}")
    faults, rest = _convertible(document)
    settings = msgspec.convert(rest, Settings, dec_hook=_secret)
    faults += _faults(settings)
    if faults:
        places = yaml_lines.Places(text, _Loader)
        raise FaultySettings(name, [printable(fault + places.line_of(fault)) for fault in faults])
    return msgspec.structs.replace(settings, instance_id=str(settings.instance_id))


def _convertible(document: dict[Any, Any]) -> tuple[list[str], dict[Any, Any]]:
    """Every fault of types and names, and the document without the faulty keys and those that are judged by them."""
    faults: dict[str, str] = {}
    rest = copy.deepcopy(document)
    while True:
        try:
            msgspec.convert(rest, Settings, dec_hook=_secret)
            break
        except msgspec.ValidationError as error:
            fault = _explain(str(error), rest)
        path = yaml_lines.path_of(fault)
        again = path in faults
        faults.setdefault(path, fault)
        if len(faults) == MOST_FAULTS or not yaml_lines.remove(rest, path, whole=again):
            return list(faults.values()), {}
    for key in {path.partition(".")[0] for path in faults} & JUDGES.keys():
        for judged in JUDGES[key]:
            rest.pop(judged, None)
    return list(faults.values()), rest


class _Loader(yaml.SafeLoader):
    """Plain YAML that refuses duplicate keys: the library alone takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge"):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"{_name(key.value)} stands there twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _on_one_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        context = f", {_unquoted(error.context)}" if error.context else ""
        return f"line {mark.line + 1}, column {mark.column + 1}: {_unquoted(error.problem or '')}{context}"
    return f"a value that cannot be read ({type(error).__name__})"


def _unquoted(text: str) -> str:
    """The YAML reader's message without its quotations of the file, which may be a password. A single character and
    the name of a token stay."""
    quoted = r" ?(?:'([^']*)'|\"([^\"]*)\")"
    return re.sub(quoted, lambda m: m[0] if re.fullmatch(r"\\?.|<[a-z ]+>", m[1] or m[2] or "") else "", text)


def _secret(kind: type, value: object) -> object:
    """The decoder that msgspec calls for custom types. Raises ValueError whose text does not have the value."""
    if kind is Secret and isinstance(value, str):
        return Secret(value)
    raise ValueError("Expected `str`")


def _kind(value: object) -> str:
    if isinstance(value, list):
        return "a list"
    return "a text" if isinstance(value, str) else "a plain value"


def _name(key: object) -> str:
    """A key of the file for a message, cut after the characters that a valid key can have (40 at most)."""
    match = re.match(r"[A-Za-z0-9_.-]{1,40}", str(key))
    return match[0] if match else "a key"


def _explain(message: str, document: Any) -> str:
    """msgspec's message with the offending value added; a mapping is not quoted, because it may have secrets."""
    location = re.search(r" - at `(?:key` in `)?\$\.?(.*)`$", message, re.DOTALL)
    where, text = (location[1], message[: location.start()]) if location else ("", message)
    at = f"{where}." if where else ""
    named = re.fullmatch(r"Object (contains unknown|missing required) field `(.*)`", text, re.DOTALL)
    if named:
        return f"{at}{_name(named[2])}: " + (
            f"unknown key{_nearest(where, named[2])}" if "unknown" in named[1] else "is missing"
        )
    if location and "at `key` in" in location[0]:
        return f"{at or 'the file: '}a key that is no name"
    value: Any = document
    for step in re.findall(r"[^.\[\]]+", where):
        try:
            value = value[int(step)] if isinstance(value, list) else value[step]
        except (KeyError, IndexError, ValueError, TypeError):
            break
    if text.startswith("Invalid enum value"):
        kinds = {"log_level": LogLevel, "underlay": Underlay, "cluster.unsigned_nodes": Unsigned}
        text = "expected one of " + ", ".join(get_args(kinds.get(where, Engine)))
    text = _in_our_words(re.sub(", got `[a-z]+`$", "", text))
    quotable = not isinstance(value, dict | list) and not where.startswith(NOT_QUOTED)
    return f"{where}: {text}, got {value!r}" if quotable else f"{where}: {text}"


def _in_our_words(text: str) -> str:
    """msgspec's `Expected ...` in the words of YAML."""
    kinds = {"int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false", "array": "a list"}
    kinds |= {"object": "keys with values", "null": "nothing"}
    text = re.sub(r"`([a-z]+)`", lambda match: kinds.get(match[1], match[0]), text)
    text = re.sub(
        r"^Expected (.*?) (>=|<=) ", lambda m: f"expected {m[1]} of at {'least' if m[2] == '>=' else 'most'} ", text
    )
    return (
        text.replace("Expected ", "expected ", 1)
        .replace(" | ", " or ")
        .replace("of length >= ", "of at least the length ")
    )


def _nearest(where: str, key: str) -> str:
    """A hint at the valid key that resembles an unknown key of the mapping `where`; empty if none does."""
    mappings: dict[str, type] = {"dns": Dns, "peers": StaticPeer, "cluster": Cluster, "cluster.etcd": Etcd}
    valid = [field.name for field in msgspec.structs.fields(mappings.get(where.partition("[")[0], Settings))]
    near = difflib.get_close_matches(key, valid, n=1)
    return f"; {near[0]} is meant?" if near else ""


def _faults(settings: Settings) -> list[str]:
    """What the types do not express, each with key and value."""
    checks: list[Callable[[], None]] = [partial(_check_node_id, settings), partial(_check_underlay, settings)]
    ranges = [partial(_check_cluster_cidr, settings, key) for key in ("cluster_cidr", "cluster_cidr6")]
    checks += ranges
    if not any(_text_of(check) for check in ranges):
        families = [network_of(cidr, strict=True) for cidr in settings.cidrs]
        checks += [partial(_check_families, settings, families), partial(_check_parts, settings, families)]
        checks.append(partial(_check_service_cidr, settings, families))
    checks += [partial(_check_peer, n, peer) for n, peer in enumerate(settings.peers)]
    checks += [partial(_check_advertise, endpoint) for endpoint in settings.advertise]
    checks += [partial(_check_url, url) for url in (settings.cluster.etcd.endpoints if settings.cluster else ())]
    checks += [partial(_check_extra_route, cidr) for cidr in settings.extra_routes]
    checks += [partial(_check_nameserver, server) for server in settings.dns.nameservers]
    checks += [partial(_check_path, settings, key) for key in ("data_dir", "run_dir", "overlay_socket")]
    return [fault for check in checks if (fault := _text_of(check))]


def _text_of(check: Callable[[], None]) -> str:
    try:
        check()
    except ValueError as error:
        return str(error)
    return ""


def _check_node_id(settings: Settings) -> None:
    if not 0 <= settings.node_id < 1 << 64:
        raise ValueError(f"node_id: {settings.node_id} is not between 0 and {(1 << 64) - 1}")


def _check_underlay(settings: Settings) -> None:
    if settings.underlay is not None and settings.wireguard_engine != "none":
        engine = settings.wireguard_engine
        raise ValueError(f"underlay: {settings.underlay} needs wireguard_engine: none, which is {engine} here")


def _check_cluster_cidr(settings: Settings, key: str) -> None:
    value = getattr(settings, key)
    if value is not None:
        network = _network(key, value)
        if network.prefixlen >= defaults.SLOT_PREFIX[network.version]:
            raise ValueError(f"{key}: {value} is too small: it must hold more than one service subnet")


def _check_families(settings: Settings, families: list[Network]) -> None:
    if len(families) == 2 and families[0].version == families[1].version:
        raise ValueError(f"cluster_cidr6: {settings.cluster_cidr6} is of the same family as cluster_cidr")


def _check_parts(settings: Settings, families: list[Network]) -> None:
    if settings.slice_cidr is not None:
        network = _network("slice_cidr", settings.slice_cidr)
        if not any(network.version == n.version and network.subnet_of(n) for n in families):  # type: ignore[arg-type]
            raise ValueError(f"slice_cidr: {settings.slice_cidr} is not inside the cluster's range")


def _check_service_cidr(settings: Settings, families: list[Network]) -> None:
    if settings.service_cidr is not None:
        own = _network("service_cidr", settings.service_cidr)
        if not any(own.version == n.version and own.subnet_of(n) for n in families):  # type: ignore[arg-type]
            raise ValueError(f"service_cidr: {own} is not inside the cluster's range")
        if own.prefixlen >= defaults.SLOT_PREFIX[own.version]:
            raise ValueError(f"service_cidr: {own} is too small: it must hold more than one service subnet")


def _check_peer(n: int, peer: StaticPeer) -> None:
    try:
        keys.decode(peer.public_key)
        for cidr in peer.allowed_ips:
            _network("allowed_ips", cidr, strict=False)
        for endpoint in (*((peer.endpoint,) if peer.endpoint else ()), *peer.endpoints):
            split_endpoint(endpoint, LONGEST_NAME)  # a name that cannot be resolved affects that peer alone
    except ValueError as error:
        raise ValueError(f"peers[{n}] ({peer.public_key}): {error}") from error


def _check_advertise(endpoint: str) -> None:
    try:
        split_endpoint(endpoint)
    except ValueError as error:
        raise ValueError(f"advertise: {endpoint}: not host:port ({error})") from error


def _check_url(url: str) -> None:
    if not re.fullmatch(r"https?://[^/\s@]+/?", url):
        shown = re.sub(r"//[^/]*@", "//...@", url)  # the URL may have a password
        raise ValueError(f"cluster.etcd.endpoints: {shown!r} is not http://host:port or https://host:port")


def _check_extra_route(cidr: str) -> None:
    if _network("extra_routes", cidr).prefixlen == 0:
        raise ValueError(f"extra_routes: {cidr} is everything, which no peer gets a route for")


def _check_nameserver(server: str) -> None:
    try:
        ipaddress.ip_address(server)
    except ValueError as error:
        raise ValueError(f"dns.nameservers: {error}") from error


def _check_path(settings: Settings, key: str) -> None:
    value = getattr(settings, key)
    if value is not None and not value.startswith("/"):
        raise ValueError(f"{key}: {value!r} is not an absolute path")


def _network(key: str, value: str, strict: bool = True) -> Network:
    """The CIDR of a key; `strict` refuses host bits. Raises ValueError that names key and value."""
    try:
        return network_of(value, strict)
    except ValueError as error:
        raise ValueError(f"{key}: {value}: {error}") from error
