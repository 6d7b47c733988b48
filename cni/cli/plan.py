"""`zlayer-cni plan CONF`: what an ADD with a network list would do, without doing it. Exit code 0 if it would be
tried, 1 if it would fail, 2 if the file cannot be read, 3 without a daemon."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from cni import answers
from cni.cli import ask, table
from cni.cli.networks import name_of
from cni.errors import CniError

UNREADABLE = 2
SHARED = "shared"


def run(options: argparse.Namespace) -> int:
    """Print the plan. Raises NoDaemon, Refused."""
    try:
        data = json.loads(Path(options.conf).read_bytes())
    except (OSError, ValueError) as error:
        sys.stderr.write(f"zlayer-cni: {options.conf} cannot be read: {error}\n")
        return UNREADABLE
    entries = own_entries(data)
    if not entries:
        sys.stderr.write(f"zlayer-cni: {options.conf} has no plugin of type zlayer-cni\n")
        return UNREADABLE
    plans = [_plan(entry, options) for entry in entries]
    if options.json:
        ask.print_json(plans)
    else:
        sys.stdout.write("\n".join(as_text(table.escape_control(plan)) for plan in plans))
    return 0 if all(not plan.fails for plan in plans) else 1


def own_entries(data: object) -> list[dict[str, object]]:
    """The configurations that a runtime would make of a list, or of a single configuration, for this plugin."""
    if not isinstance(data, dict):
        return []
    plugins = data.get("plugins")
    if not isinstance(plugins, list):
        plugins = [data]
    head = {key: data[key] for key in ("cniVersion", "name") if key in data}
    return [{**plugin, **head} for plugin in plugins if isinstance(plugin, dict) and plugin.get("type") == "zlayer-cni"]


def _plan(entry: dict[str, object], options: argparse.Namespace) -> answers.Plan:
    from cni.netconf.intent import intent
    from cni.netconf.request import read_request

    env = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "plan",
        "CNI_NETNS": "/proc/self/ns/net",
        "CNI_IFNAME": options.ifname,
        "CNI_PATH": "/opt/cni/bin",
        "CNI_ARGS": options.args,
    }
    try:
        call, conf = read_request(env, json.dumps(entry).encode())
        wish = intent(conf, call)
    except CniError as error:
        return answers.Plan(network=str(entry.get("name", "")), fails=[f"code {error.code}: {_said(error)}"])
    run_dir = options.run_dir or conf.run_dir
    status = ask.ask(run_dir, "status", answers.Status)
    networks = ask.ask(run_dir, "networks", answers.Networks)
    segment = next((s for s in status.services if s.service == wish.service), None)
    members = next((n.members for n in networks.networks if n.isolation_network == wish.isolation_network), [])
    return answers.Plan(
        network=conf.name,
        service=wish.service,
        mode=wish.mode,
        bridge=segment.bridge if segment else None,
        subnets=segment.subnets if segment else [],
        attachments=segment.attachments if segment else 0,
        isolation_network=wish.isolation_network,
        reaches=len(members),
        addresses=[each.address for each in wish.addresses],
        mtu=min(wish.mtu or status.mtu, status.mtu),
        routes=[str(route.dst) for route in wish.routes],
        warnings=[*conf.warnings, *wish.warnings],
        fails=_fails(status),
    )


def _said(error: CniError) -> str:
    return error.msg + (f": {error.details}" if error.details else "")


def _fails(status: answers.Status) -> list[str]:
    """Why every ADD would fail now."""
    fence = [] if status.fence.in_force else [f"the fence is not in force: {status.fence.trouble}"]
    joined = [p.text for p in status.problem_details or () if p.code in ("not-joined", "overlay-range-refused")]
    return fence + joined


def as_text(plan: answers.Plan) -> str:
    """A line for each decision."""
    if plan.service is None:
        return "".join(f"an ADD would fail: {reason}\n" for reason in plan.fails)
    bridge = f"{plan.bridge}, {', '.join(plan.subnets)}, {plan.attachments} attached"
    lines = [
        f"network    {plan.network}",
        f"service    {plan.service} ({plan.mode})",
        f"bridge     {bridge if plan.bridge else 'a new one, with a subnet that is free now'}",
        f"isolation  {name_of(plan.isolation_network)}, {plan.reaches} members on this node",
        f"addresses  {', '.join(plan.addresses) or 'the next free ones'}",
        f"MTU        {plan.mtu}",
    ]
    lines += [f"route      {route}" for route in plan.routes]
    lines += [f"warning    {warning}" for warning in plan.warnings]
    lines += [f"WOULD FAIL {reason}" for reason in plan.fails]
    return "\n".join(lines) + "\n"
