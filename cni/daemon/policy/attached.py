"""An attachment that is no pod of a Kubernetes API, as policies see it: labels, and its CNI network as namespace."""

from __future__ import annotations

from collections.abc import Iterable

from cni.daemon.model.dns_names import container_name
from cni.daemon.model.records import Attachment
from cni.daemon.policy.model import Pod

PREFIX = "zlayer.io/"
"""The labels that the daemon gives begin with it; labels of `args.cni.labels` that do are left out."""


def pod_of(attachment: Attachment) -> Pod:
    """The attachment as policies see it."""
    return as_pod(
        network=attachment.network,
        container=attachment.container,
        pod=attachment.pod,
        service=attachment.service,
        isolation=attachment.isolation,
        labels=attachment.labels,
        addresses=attachment.ips,
    )


def as_pod(
    *,
    network: str,
    container: str,
    pod: str,
    service: str,
    isolation: str | None,
    labels: Iterable[tuple[str, str]],
    addresses: tuple[str, ...] = (),
) -> Pod:
    """A container as policies see it. `network`: its CNI network; `pod`: "namespace/name", empty for no pod."""
    namespace, _, name = pod.rpartition("/")
    given = {
        "service": service,
        "network": network,
        "isolation-network": isolation,
        "name": container_name(pod, container),
        "namespace": namespace or None,
    }
    all_labels = {key: value for key, value in labels if not key.startswith(PREFIX)}
    all_labels |= {PREFIX + key: value for key, value in given.items() if value is not None}
    return Pod(network, name or container, all_labels, addresses)
