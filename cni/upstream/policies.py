"""Network policies in front of ZLayer's overlayd, which has none: an attachment that one selects is refused."""

from __future__ import annotations

from pathlib import Path

from cni.errors import FenceFailed, InvalidConfig
from cni.upstream.attach import Wanted
from cni.verbs import pod_of

INSTEAD = "take the policy away, or let this node's containers be attached by zlayer-cni's own daemon"


def refuse(directory: str, wanted: Wanted) -> None:
    """Raises FenceFailed if a policy of the directory selects the attachment, or if one cannot be read. Costs one look
    at the directory where that is missing or empty."""
    if not Path(directory).is_dir():
        return
    from cni.daemon.policy import attached, reader
    from cni.daemon.policy.files import files_of, read_file

    wish, call = wanted.wish, wanted.asked.call
    pod = attached.as_pod(
        network=wanted.asked.conf.name,
        container=call.container_id,
        pod=pod_of(call),
        service=wish.service,
        isolation=wish.isolation_network,
        labels=wish.labels,
    )
    for path in files_of(directory):
        try:
            policies = reader.read_text(read_file(path))
        except (OSError, InvalidConfig) as error:
            reason = error.msg if isinstance(error, InvalidConfig) else error.strerror or str(error)
            raise FenceFailed(f"{path}: {reason}; so no container is attached", INSTEAD) from error
        for policy in policies:
            if policy.selects(pod, "ingress") or policy.selects(pod, "egress"):
                what = f"{path}: the network policy {policy.title} selects it, and ZLayer's overlayd enforces none"
                raise FenceFailed(f"{what}, so the container is not attached", INSTEAD)
