"""The test's results as text, and as JUnit's XML. Pure."""

from __future__ import annotations

from html import escape  # XML's five characters; the frozen program has no `xml`

from cni import answers
from cni.cli import table
from cni.cli.connectivity.causes import CAUSES


def as_text(result: answers.Connectivity) -> str:
    """A table of all cells, then each fault with its remedy, then one line that sums up."""
    rows = [
        (verdict(cell), cell.kind, cell.source, cell.destination, cell.address or "-", cell.text)
        for cell in result.cells
    ]
    text = table.render(("", "CHECK", "FROM", "TO", "ADDRESS", "RESULT"), rows)
    text = text.replace("\nFAIL ", f"\n{table.paint('FAIL', 'red')} ")
    for code in result.codes:
        meaning, remedy = CAUSES[code]
        text += f"\n{code}: {meaning}\n  -> {remedy}\n"
    ran = [cell for cell in result.cells if cell.got is not None]
    wrong = sum(not cell.ok for cell in ran)
    skipped = len(result.cells) - len(ran)
    summary = f"{len(ran) - wrong} of {len(ran)} checks are as they should be, {skipped} were not run"
    return f"{text}\n{summary} ({result.seconds:.1f} s)\n"


def verdict(cell: answers.Cell) -> str:
    if cell.got is None:
        return "-"
    return "ok" if cell.ok else "FAIL"


def as_junit(result: answers.Connectivity) -> str:
    """One test case for each cell."""
    failures = sum(cell.got is not None and not cell.ok for cell in result.cells)
    skipped = sum(cell.got is None for cell in result.cells)
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<testsuite name="zlayer-cni connectivity" hostname={_quoted(result.node)} tests="{len(result.cells)}"'
        f' failures="{failures}" errors="0" skipped="{skipped}" time="{result.seconds:.3f}">',
    ]
    for cell in result.cells:
        name = f"{cell.kind}: {cell.source} to {cell.destination} {cell.address or ''}".rstrip()
        head = f'  <testcase classname="connectivity" name={_quoted(name)} time="{cell.seconds:.3f}"'
        if cell.got is None:
            lines.append(f"{head}><skipped message={_quoted(cell.text)}/></testcase>")
        elif cell.ok:
            lines.append(f"{head}/>")
        else:
            kind = _quoted(cell.code or "")
            body = escape(f"{cell.text}\n{cell.remedy}")
            lines.append(f"{head}><failure type={kind} message={_quoted(cell.text)}>{body}</failure></testcase>")
    return "\n".join([*lines, "</testsuite>", ""])


def _quoted(text: str) -> str:
    return f'"{escape(text)}"'
