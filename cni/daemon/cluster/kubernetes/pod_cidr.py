"""The podCIDR of this machine's Node as the pool of its containers (`cluster.kubernetes.pod_cidr`).

The API server is asked when a daemon starts, before the node's records are read, and the answer is kept in the data
directory: a daemon starts while the API server does not answer.
"""

from __future__ import annotations

import ipaddress
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from cni import defaults, files
from cni.daemon.cluster.kubernetes.api_server import ApiServer
from cni.daemon.cluster.kubernetes.objects import NODE
from cni.daemon.cluster.store import StoreError
from cni.daemon.settings import Settings
from cni.errors import InvalidConfig, TryAgainLater

log = logging.getLogger(__name__)

FILE = "pod-cidrs.json"  # in the data directory
KEY = "cluster.kubernetes.pod_cidr"


def with_pool(settings: Settings, node: str, server: ApiServer) -> Settings:
    """The settings with the podCIDR of the Node `node` as the pool. Raises InvalidConfig if the podCIDR is no pool of
    this overlay, TryAgainLater if the API server does not answer and has never done so; OSError."""
    kept = Path(settings.data_dir, FILE)
    try:
        found = server.call("GET", f"{NODE.path}/{node}").get("spec", {})
    except StoreError as error:
        if not kept.exists():
            raise TryAgainLater(f"{KEY}: the podCIDR of the Node {node} is not known", str(error)) from error
        log.warning("the API server does not tell the podCIDR of the Node %s, so the last one counts: %s", node, error)
        cidrs = json.loads(kept.read_text())
    else:
        cidrs = found.get("podCIDRs") or [found["podCIDR"]] if found.get("podCIDR") else []
    pool = pool_of(cidrs, settings.cidrs, node)
    kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.write(str(kept), json.dumps(cidrs).encode())
    return msgspec.structs.replace(settings, service_cidr=pool, slice_cidr=slice_of(pool))


def pool_of(cidrs: Iterable[str], clusters: Sequence[str], node: str) -> str:
    """The podCIDR of the overlay's first IP version. Pure. Raises InvalidConfig if there is none, if it is not inside
    the overlay's range, or if it holds fewer than two subnets: the node's own, and one of a service."""
    given = [ipaddress.ip_network(cidr) for cidr in cidrs]
    cluster = ipaddress.ip_network(clusters[0])
    own = next((cidr for cidr in given if cidr.version == cluster.version), None)
    if own is None:
        raise InvalidConfig(
            f"{KEY}: the Node {node} has no podCIDR of IPv{cluster.version}",
            "kube-controller-manager gives one with --allocate-node-cidrs and --cluster-cidr",
        )
    if not own.subnet_of(cluster):  # type: ignore[arg-type]
        raise InvalidConfig(
            f"{KEY}: {own}, the podCIDR of the Node {node}, is not inside {cluster}",
            "cluster_cidr must be the --cluster-cidr of kube-controller-manager",
        )
    if own.prefixlen >= (most := defaults.SLOT_PREFIX[own.version]):
        raise InvalidConfig(
            f"{KEY}: {own}, the podCIDR of the Node {node}, is too small",
            f"a node needs two subnets of /{most} or more (--node-cidr-mask-size of kube-controller-manager)",
        )
    return str(own)


def slice_of(pool: str) -> str:
    """The node's own subnet: the first one of the pool. Pure."""
    network = ipaddress.ip_network(pool)
    return str(next(network.subnets(new_prefix=defaults.SLOT_PREFIX[network.version])))
