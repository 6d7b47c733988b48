"""What the types of the daemon's settings do not express: each fault with key and value. No I/O."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from functools import partial

from cni import addresses, defaults
from cni.daemon.model import dns_upstreams, keys
from cni.daemon.model.endpoints import LONGEST_NAME, split_endpoint
from cni.daemon.model.relay_address import relay_address
from cni.daemon.model.relay_pairs import usable_ports
from cni.daemon.settings import Cluster, NetworkList, RelayAccess, RelayPorts, Settings, StaticPeer, TurnAccess
from cni.openings import parse_reach, parse_sender
from cni.overlay.address import network as network_of

Network = addresses.Network


def faults(settings: Settings) -> list[str]:
    """The faults of settings that were read, in the order of the checks."""
    checks: list[Callable[[], None]] = [partial(_check_node_id, settings), partial(_check_underlay, settings)]
    ranges = [partial(_check_cluster_cidr, settings, key) for key in ("cluster_cidr", "cluster_cidr6")]
    checks += ranges
    if not any(_text_of(check) for check in ranges):
        families = [network_of(cidr, strict=True) for cidr in settings.cidrs]
        checks += [partial(_check_families, settings, families), partial(_check_parts, settings, families)]
        checks.append(partial(_check_service_cidr, settings, families))
    checks += [partial(_check_pod_cidr, settings), partial(_check_services, settings)]
    checks += [partial(_check_peer, n, peer) for n, peer in enumerate(settings.peers)]
    checks += [partial(_check_advertise, endpoint) for endpoint in settings.advertise]
    if settings.cluster is not None:
        checks += [partial(check, settings.cluster) for check in (_check_one_store, _check_endpoints, _check_server)]
    checks += [partial(_check_extra_route, cidr) for cidr in settings.extra_routes]
    checks += [partial(_check_stun, server) for server in (settings.nat.stun if settings.nat else ())]
    checks += [partial(_check_relay, settings.nat.relay)] if settings.nat and settings.nat.relay else []
    checks += [partial(_check_user_relay, relay) for relay in (settings.nat.relays if settings.nat else ())]
    checks += [partial(_check_user_relay, relay) for relay in (settings.nat.turn if settings.nat else ())]
    checks += [partial(_check_nameserver, server) for server in settings.dns.nameservers]
    checks += [partial(_check_upstream, "dns.upstreams", server) for server in settings.dns.upstreams or ()]
    checks += [partial(_check_stub_zone, zone, servers) for zone, servers in settings.dns.zones.items()]
    checks += [partial(_check_zone, settings.dns.zone), partial(_check_served, settings)]
    checks += [partial(_check_opening, "reach", parse_reach, text) for text in settings.isolation.reach]
    checks += [partial(_check_opening, "from", parse_sender, text) for text in settings.isolation.from_]
    checks += [partial(_check_path, settings, key) for key in ("data_dir", "run_dir", "overlay_socket")]
    checks += [partial(_check_network_list, settings.network_list)]
    checks += [partial(_check_listen, settings.metrics.listen)]
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


def _check_pod_cidr(settings: Settings) -> None:
    if settings.takes_pod_cidr and (settings.service_cidr or settings.slice_cidr):
        raise ValueError("cluster.kubernetes.pod_cidr: the Node gives service_cidr and slice_cidr, remove them here")


def _check_service_cidr(settings: Settings, families: list[Network]) -> None:
    if settings.service_cidr is not None:
        own = _network("service_cidr", settings.service_cidr)
        if not any(own.version == n.version and own.subnet_of(n) for n in families):  # type: ignore[arg-type]
            raise ValueError(f"service_cidr: {own} is not inside the cluster's range")
        if own.prefixlen >= defaults.SLOT_PREFIX[own.version]:
            raise ValueError(f"service_cidr: {own} is too small: it must hold more than one service subnet")


def _check_services(settings: Settings) -> None:
    seen: set[str] = set()
    for n, service in enumerate(settings.services):
        if service.name in seen:
            raise ValueError(f"services[{n}].name: {service.name} stands there twice")
        seen.add(service.name)


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


def _check_relay(relay: RelayPorts) -> None:
    try:
        usable_ports(relay.ports)
    except ValueError as error:
        raise ValueError(f"nat.relay.ports: {relay.ports}: {error}") from error
    if relay.external:
        try:
            ipaddress.IPv4Address(relay.external)
        except ValueError as error:
            raise ValueError(f"nat.relay.external: {relay.external}: no IPv4 address ({error})") from error


def _check_user_relay(relay: RelayAccess | TurnAccess) -> None:
    key, kind = ("nat.relays", "zlayer") if isinstance(relay, RelayAccess) else ("nat.turn", "turn")
    try:
        if relay_address(relay.address)[0] != kind:
            raise ValueError("host:port is for nat.relays, turn: and turns: for nat.turn")
    except ValueError as error:
        raise ValueError(f"{key}: {relay.address}: {error}") from error


def _check_stun(server: str) -> None:
    try:
        split_endpoint(server, LONGEST_NAME)
    except ValueError as error:
        raise ValueError(f"nat.stun: {server}: not host:port ({error})") from error


def _check_listen(listen: str | None) -> None:
    try:
        if listen is not None:
            split_endpoint(listen)
    except ValueError as error:
        raise ValueError(f"metrics.listen: {listen}: not address:port ({error})") from error


def _check_one_store(cluster: Cluster) -> None:
    if (cluster.etcd is None) == (cluster.kubernetes is None):
        raise ValueError("cluster: exactly one of etcd and kubernetes is expected")


def _check_endpoints(cluster: Cluster) -> None:
    for url in cluster.etcd.endpoints if cluster.etcd is not None else ():
        _check_url("cluster.etcd.endpoints", url)


def _check_server(cluster: Cluster) -> None:
    kubernetes = cluster.kubernetes
    if kubernetes is None:
        return
    if kubernetes.server:
        _check_url("cluster.kubernetes.server", kubernetes.server)
    external = kubernetes.external_node
    if external and kubernetes.pod_cidr:
        raise ValueError("cluster.kubernetes.pod_cidr: a machine that is no Node (external_node) has no podCIDR")
    if external and kubernetes.node_name:
        raise ValueError(f"cluster.kubernetes.external_node: {external!r} and node_name are given; one is expected")
    if external and not re.fullmatch(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?", external):
        raise ValueError(f"cluster.kubernetes.external_node: {external!r} is no name of an object (RFC 1123)")


def _check_url(key: str, url: str) -> None:
    if not re.fullmatch(r"https?://[^/\s@]+/?", url):
        shown = re.sub(r"//[^/]*@", "//...@", url)  # the URL may have a password
        raise ValueError(f"{key}: {shown!r} is not http://host:port or https://host:port")


def _check_extra_route(cidr: str) -> None:
    if _network("extra_routes", cidr).prefixlen == 0:
        raise ValueError(f"extra_routes: {cidr} is everything, which no peer gets a route for")


def _check_nameserver(server: str) -> None:
    try:
        ipaddress.ip_address(server)
    except ValueError as error:
        raise ValueError(f"dns.nameservers: {error}") from error


def _check_upstream(key: str, server: str) -> None:
    try:
        dns_upstreams.endpoint_of(server)
    except ValueError as error:
        raise ValueError(f"{key}: {server}: {error}") from error


def _check_stub_zone(zone: str, servers: tuple[str, ...]) -> None:
    if not dns_upstreams.is_domain(zone):
        raise ValueError(f"dns.zones: {zone!r} is not a domain")
    if not 0 < len(servers) <= dns_upstreams.MOST_SERVERS:
        raise ValueError(f"dns.zones.{zone}: {len(servers)} servers, 1 to {dns_upstreams.MOST_SERVERS} are wanted")
    for server in servers:
        _check_upstream(f"dns.zones.{zone}", server)


def _check_zone(zone: str) -> None:
    if zone and not dns_upstreams.is_domain(zone):
        raise ValueError(f"dns.zone: {zone!r} is not a domain")


def _check_served(settings: Settings) -> None:
    for key in ("host", "intercept"):
        if getattr(settings.dns, key) and not settings.dns.serve:
            raise ValueError(f"dns.{key}: true needs dns.serve: true, which is false here")


def _check_opening(key: str, parse: Callable[[str], object], text: str) -> None:
    try:
        parse(text)
    except ValueError as error:
        raise ValueError(f"isolation.{key}: {text!r}: {error}") from error


def _check_path(settings: Settings, key: str) -> None:
    value = getattr(settings, key)
    if value is not None and not value.startswith("/"):
        raise ValueError(f"{key}: {value!r} is not an absolute path")


def _check_network_list(places: NetworkList) -> None:
    for key, value in (("source", places.source), ("target", places.target)):
        if value and not value.startswith("/"):
            raise ValueError(f"network_list.{key}: {value!r} is not an absolute path")


def _network(key: str, value: str, strict: bool = True) -> Network:
    """The CIDR of a key; `strict` refuses host bits. Raises ValueError that names key and value."""
    try:
        return network_of(value, strict)
    except ValueError as error:
        raise ValueError(f"{key}: {value}: {error}") from error
