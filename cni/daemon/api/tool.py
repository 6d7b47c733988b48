"""The requests of the operator's tool: the daemon answers with the types of cni/answers/, `cni/cli` prints them.

A request comes over the CNI socket (root only) with the key TOOL instead of CNI_COMMAND.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import get_args

import msgspec

from cni import __version__, answers, plugin_protocol
from cni.daemon.api import tool_dns, tool_drops, tool_fence, tool_gc, tool_mesh, tool_nat, tool_why
from cni.daemon.api.tool_context import ToolContext
from cni.daemon.model.records import Attachment, Node, Service
from cni.daemon.settings import LogLevel, Settings
from cni.errors import CniError, InvalidConfig
from cni.problems import Problem

log = logging.getLogger(__name__)


def answer(env: Mapping[str, str], context: ToolContext) -> tuple[int, bytes]:
    """Exit code and JSON for one request. An unknown request gets an error object, like a plugin's call. Never
    raises."""
    try:
        question = env[plugin_protocol.TOOL]
        ask = QUESTIONS.get(question)
        if ask is None:
            raise InvalidConfig(f"the running daemon (version {__version__}) does not know {question!r}")
        return 0, msgspec.json.encode(ask(context, env))
    except CniError as error:
        return 1, msgspec.json.encode(answers.Failure(code=error.code, msg=error.msg, details=error.details))
    except Exception as error:
        log.exception("unexpected error in the request %s", env[plugin_protocol.TOOL])
        text = f"internal error: {type(error).__name__}: {error}"
        failure = answers.Failure(code=CniError.code, msg=text, details="the daemon's log has the rest")
        return 1, msgspec.json.encode(failure)


def status(context: ToolContext, _: Mapping[str, str]) -> answers.Status:
    """A summary of the node, and its problems."""
    state, settings = context.state, context.settings
    attachments = state.snapshot()
    context.health.note_settings()
    problems = context.conditions.problems()
    return answers.Status(
        version=__version__,
        pid=os.getpid(),
        uptime_seconds=round(time.monotonic() - context.started, 1),
        run_dir=settings.run_dir,
        data_dir=settings.data_dir,
        node=answers.NodeSummary(
            deployment=state.node.deployment,
            instance_id=state.node.instance_id,
            node_id=state.node.node_id,
            cluster_cidrs=list(state.cidrs),
            slice_cidr=state.node.slice_cidr,
        ),
        mtu=context.container_mtu.current(),
        wireguard=tool_mesh.wireguard_summary(context),
        fence=tool_fence.in_force(context),
        services=[_service(context, record) for _, record in sorted(state.services.items())],
        attachments=len(attachments),
        unfinished=sum(1 for attachment in attachments if attachment.state != "live"),
        calls=context.calls(),
        dns=tool_dns.summary(context),
        problems=[problem.text for problem in problems],
        problem_details=[_problem(problem) for problem in problems],
        notes=[*hidden(settings, state.node), *unencrypted(settings), *louder(settings)],
    )


def _problem(problem: Problem) -> answers.ProblemDetail:
    kind = problem.kind()
    return answers.ProblemDetail(
        code=problem.code, area=kind.area, severity=kind.severity, text=problem.text, action=kind.action
    )


def hidden(settings: Settings, node: Node) -> list[str]:
    """The settings of the YAML that are not in effect because the node's record has another value, until a reboot: an
    agent or the cluster has set it, or the YAML was changed after the record was made. What an agent has set where the
    YAML has the default is left out, and so are an id and a slice that the YAML does not name."""
    defaults = Settings()
    recorded = () if node.set_up else ("deployment", "instance_id", "cluster_cidr", "cluster_cidr6", "wg_port")
    return [
        f"the YAML says {key}: {stated}, but {counts}, set by an agent or the cluster, is in effect until the next boot"
        for key in ("deployment", "instance_id", "node_id", "cluster_cidr", "cluster_cidr6", "slice_cidr", "wg_port")
        if ((stated := getattr(settings, key)) != getattr(defaults, key) or key in recorded)
        and str(stated) != str(counts := getattr(node, key))
    ]


def unencrypted(settings: Settings) -> list[str]:
    """A reminder if the operator chose an underlay without encryption."""
    note = "underlay: routed: the host's routes carry the overlay, and traffic between nodes is not encrypted"
    return [note] if settings.underlay == "routed" else []


def _service(context: ToolContext, record: Service) -> answers.ServiceSummary:
    return answers.ServiceSummary(
        service=record.name,
        mode=record.mode,
        attach=record.attach,
        bridge="" if record.is_routed else record.bridge,
        subnets=list(record.subnets),
        attachments=sum(1 for member in context.state.members(record.bridge) if member.service == record.name),
    )


def attachments(context: ToolContext, _: Mapping[str, str]) -> list[answers.Attachment]:
    """Every attachment of the node, oldest first."""
    return [_attachment(context, attachment) for attachment in context.state.snapshot()]


def _attachment(context: ToolContext, attachment: Attachment) -> answers.Attachment:
    return answers.Attachment(
        network=attachment.network,
        container_id=attachment.container,
        interface=attachment.ifname,
        addresses=[address.address for address in attachment.addresses],
        gateways=sorted({address.gateway for address in attachment.addresses}, key=tool_fence.by_address),
        service=attachment.service,
        mode=attachment.mode,
        isolation_network=attachment.isolation,
        state=attachment.state,
        attach=attachment.attach,
        bridge="" if attachment.is_routed else attachment.bridge,
        host_interface=attachment.host_veth,
        mac=attachment.mac,
        mtu=attachment.mtu,
        netns=attachment.sandbox,
        pid=attachment.pid or None,
        pod=attachment.pod,
        created_unix=round(attachment.created, 3),
        names=context.dns.names_of(attachment),
    )


def teardown(context: ToolContext, _: Mapping[str, str]) -> answers.Done:
    """Remove the data path, for `uninstall`."""
    context.tear_down()
    return answers.Done(done=True)


def log_level(context: ToolContext, env: Mapping[str, str]) -> answers.LogLevel:
    """The level of the log, after a change to LEVEL if there is one. Raises InvalidConfig for a level that is none."""
    level, root = env.get(plugin_protocol.NEW_LOG_LEVEL, ""), logging.getLogger()
    if level and level not in get_args(LogLevel):
        raise InvalidConfig(f"{level!r} is no level of the log: " + ", ".join(get_args(LogLevel)))
    if level:
        before = logging.getLevelName(root.level).lower()
        log.warning("the log's level is %s from now on, in place of %s", level, before)
        root.setLevel(level.upper())
    return answers.LogLevel(level=logging.getLevelName(root.level).lower(), configured=context.settings.log_level)


def louder(settings: Settings) -> list[str]:
    """A reminder if the level of the log was changed in the running daemon."""
    level = logging.getLevelName(logging.getLogger().level).lower()
    note = f"the log's level is {level}, set by `zlayer-cni log-level`; the settings say {settings.log_level}"
    return [note] if level != settings.log_level and level in get_args(LogLevel) else []


QUESTIONS: dict[str, Callable[[ToolContext, Mapping[str, str]], answers.Answer | Sequence[answers.Answer]]] = {
    "status": status,
    "attachments": attachments,
    "networks": tool_fence.networks,
    "drops": tool_drops.drops,
    "log-level": log_level,
    "why": tool_why.may_reach,
    "resolve": tool_dns.resolve,
    "gc": tool_gc.collect_garbage,
    "teardown": teardown,
    **tool_mesh.QUESTIONS,
    **tool_nat.QUESTIONS,
}
