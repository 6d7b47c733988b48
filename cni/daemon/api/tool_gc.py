"""The tool's request `gc`: release the attachments whose interface is gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cni import answers, plugin_protocol
from cni.daemon.api.tool_context import ToolContext
from cni.daemon.fence.from_records import bridges
from cni.daemon.model.records import Attachment
from cni.daemon.reconcile.node import is_our_bridge, is_our_port
from cni.host.links import Link


def collect_garbage(context: ToolContext, env: Mapping[str, str]) -> answers.Garbage:
    """Release the attachments that the daemon's own garbage collection would release; with DRY_RUN only list them.

    The daemon releases them by itself after two comparisons in a row (`reconcile/node.py`). Links that this program
    made and that no record has are reported, and removed when a daemon starts: while calls are running, such a link may
    belong to an attach that is under way.
    """
    dry = bool(env.get(plugin_protocol.DRY_RUN))
    links = context.kernel.all_links()  # before the records: a link that exists now had its record before
    names, attachments = {link.name for link in links}, context.state.snapshot()
    dead = [attachment for attachment in attachments if attachment.host_veth not in names]
    released = [] if dry else [_dead(attachment) for attachment in dead if context.attacher.release_dead(attachment)]
    return answers.Garbage(
        dry_run=dry,
        released=released,
        candidates=[_dead(attachment) for attachment in dead] if dry else [],
        strays=_strays(context, links, attachments),
    )


def _dead(attachment: Attachment) -> answers.DeadAttachment:
    return answers.DeadAttachment(
        network=attachment.network,
        container_id=attachment.container,
        interface=attachment.ifname,
        addresses=[address.address for address in attachment.addresses],
        pod=attachment.pod,
        reason="has no interface any more" if attachment.state == "live" else "was never finished",
    )


def _strays(context: ToolContext, links: Sequence[Link], attachments: Sequence[Attachment]) -> list[str]:
    ports = {attachment.host_veth for attachment in attachments}
    kept = set(bridges(context.state.services.values()))
    return sorted(
        link.name
        for link in links
        if (is_our_port(link) and link.name not in ports) or (is_our_bridge(link) and link.name not in kept)
    )
