"""`zlayer-cni explain [CODE]`: what a code means and what to do: of a problem, an error, or the connectivity test. Asks
no daemon. Exit code 0, or 2 for an unknown code."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator

from cni import answers, errors, problems
from cni.cli import ask, meant, table
from cni.cli.connectivity.causes import CAUSES

UNKNOWN = 2


def run(code: str, as_json: bool) -> int:
    """Print the explanation, or without a code the list of all."""
    known = {each.code: each for each in explanations()}
    if code and code not in known:
        sys.stderr.write(f"zlayer-cni: there is no code {code!r}{meant.hint(code, known)}\n")
        return UNKNOWN
    chosen = [known[code]] if code else list(known.values())
    if as_json:
        ask.print_json(chosen)
    elif code:
        sys.stdout.write(as_text(known[code]))
    else:
        rows = [(each.code, each.kind, each.meaning) for each in chosen]
        sys.stdout.write(table.render(("CODE", "KIND", "MEANING"), rows))
    return 0


def explanations() -> Iterator[answers.Explanation]:
    """Every code: problems, errors, faults of the connectivity test."""
    for kind in problems.REGISTRY.values():
        text = f"problem, {kind.severity}, {kind.area}"
        yield answers.Explanation(code=kind.code, kind=text, meaning=kind.meaning, action=kind.action)
    for error in _errors(errors.CniError):
        meaning = " ".join((inspect.getdoc(error) or "").split())
        yield answers.Explanation(code=str(error.code), kind="error", meaning=meaning, action="")
    for code, (meaning, remedy) in CAUSES.items():
        yield answers.Explanation(code=code, kind="connectivity test", meaning=meaning, action=remedy)


def _errors(kind: type[errors.CniError]) -> Iterator[type[errors.CniError]]:
    yield kind
    for each in kind.__subclasses__():
        if each.__module__ == errors.__name__:
            yield from _errors(each)


def as_text(each: answers.Explanation) -> str:
    """The code, its meaning, and what to do."""
    action = f"  -> {each.action}\n" if each.action else ""
    return f"{each.code} ({each.kind})\n  {each.meaning}\n{action}"
