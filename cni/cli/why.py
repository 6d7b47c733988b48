"""`zlayer-cni why SRC DST [PORT]`: whether a flow is allowed, and by which rule. Exit code 0 if it is, 1 if not, 2 if
an argument is unclear, 3 without a daemon."""

from __future__ import annotations

import sys

from cni import answers, plugin_protocol
from cni.cli import ask, table
from cni.cli.networks import name_of


def run(run_dir: str, src: str, dst: str, port: str, as_json: bool) -> int:
    """Print the answer; raises NoDaemon, NeedsRoot."""
    arguments = {plugin_protocol.SRC: src, plugin_protocol.DST: dst, plugin_protocol.PORT: port}
    answer = ask.ask_clearly(run_dir, "why", answers.Reachability, arguments)
    if answer is None:
        return ask.UNCLEAR
    if as_json:
        ask.print_json(answer)
    else:
        sys.stdout.write(as_text(table.escape_control(answer)))
    return 0 if answer.allowed else 1


def rule_line(rule: answers.Rule) -> str:
    """A line that names a rule of the fence, below what the rule decides."""
    return f'     rule "{rule.name}" in chain {rule.chain} of table {rule.family} zlayer_cni'


def as_text(answer: answers.Reachability) -> str:
    """A paragraph for each pair of addresses."""
    lines = []
    for path in answer.paths:
        lines.append(f"{_answer(path)}  {_endpoint(path.source)} -> {_endpoint(path.to)}")
        lines.append(f"     {path.reason}")
        if path.rule:
            lines.append(rule_line(path.rule))
        else:
            lines.append("     no rule of the fence applies")
        lines += [f"     note: {note}" for note in path.notes]
        if len(path.endpoints) > 1:
            lines += [_of_end(end) for end in path.endpoints]
    lines += [f"warning: {warning}" for warning in answer.warnings]
    return "\n".join(lines) + "\n"


def _of_end(end: answers.TranslatedEnd) -> str:
    where = f"{end.address} port {end.port}" if end.port else end.address
    rule = f', rule "{end.rule.name}"' if end.rule else ""
    return f"     {'yes' if end.allowed else 'NO '}  {where} ({end.label}): {end.reason}{rule}"


def _answer(path: answers.Path) -> str:
    if not path.allowed:
        return "NO "
    return "yes" if path.certain else "yes, by this node's fence alone:"


def _endpoint(endpoint: answers.Endpoint) -> str:
    text = endpoint.address or endpoint.label
    if endpoint.address and endpoint.label:
        text += f" ({endpoint.label}"
        if endpoint.isolation_network is not None or endpoint.on_flat_mesh:
            network = endpoint.isolation_network
            text += f", {'flat mesh' if network is None else name_of(network)}"
        text += ")"
    return text
