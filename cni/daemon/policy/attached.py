"""An attachment that is no pod of a Kubernetes API, as policies see it: labels, and its CNI network as namespace."""

from __future__ import annotations

from cni.daemon.model.dns_names import container_name
from cni.daemon.model.records import Attachment
from cni.daemon.policy.model import Pod

PREFIX = "zlayer.io/"
"""The labels that the daemon gives begin with it; labels of `args.cni.labels` that do are left out."""


def pod_of(attachment: Attachment) -> Pod:
    """The attachment as policies see it."""
    namespace, _, _ = attachment.pod.rpartition("/")
    given = {
        "service": attachment.service,
        "network": attachment.network,
        "isolation-network": attachment.isolation,
        "name": container_name(attachment.pod, attachment.container),
        "namespace": namespace or None,
    }
    labels = {key: value for key, value in attachment.labels if not key.startswith(PREFIX)}
    labels |= {PREFIX + key: value for key, value in given.items() if value is not None}
    name = attachment.pod.rpartition("/")[2] or attachment.container
    return Pod(attachment.network, name, labels, attachment.ips)
