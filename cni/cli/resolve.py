"""`zlayer-cni resolve NAME [--from CONTAINER]`: what the node's DNS server answers, and what it withholds by which
rule. Exit code 0 if the name resolves, 1 if not, 2 if an argument is unclear, 3 without a daemon."""

from __future__ import annotations

import sys

from cni import answers, plugin_protocol
from cni.cli import ask, table
from cni.cli.why import rule_line


def run(run_dir: str, name: str, asker: str, as_json: bool) -> int:
    """Print the answer; raises NoDaemon, NeedsRoot."""
    arguments = {plugin_protocol.SRC: asker, plugin_protocol.DST: name}
    answer = ask.ask_clearly(run_dir, "resolve", answers.Resolution, arguments)
    if answer is None:
        return ask.UNCLEAR
    if as_json:
        ask.print_json(answer)
    else:
        sys.stdout.write(as_text(table.escape_control(answer)))
    return 0 if answer.code in ("NOERROR", "FORWARDED") else 1


def as_text(answer: answers.Resolution) -> str:
    """The answer, then a paragraph for each address that is withheld."""
    kept = f", kept for {answer.ttl} s" if answer.ttl is not None else ""
    lines = [f"{answer.code}{kept}  {answer.name}, asked by {answer.asker}"]
    lines += [f"     {value}" for value in (*answer.addresses, *answer.names)]
    for withheld in answer.withheld:
        lines.append(f"withheld: {withheld.address} ({withheld.of})")
        lines.append(f"     {withheld.reason}")
        if withheld.rule:
            lines.append(rule_line(withheld.rule))
    return "\n".join(lines) + "\n"
