"""Citations lead somewhere: to docs/reference by number, to another page by its heading, to a file by its path."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"
CITING = [
    *sorted((ROOT / "cni").rglob("*.py")),
    *sorted((ROOT / "tests").rglob("*.py")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(path for path in (ROOT / "conf").rglob("*") if path.is_file()),
    *sorted(path for path in (ROOT / "scripts").iterdir() if path.is_file()),
    *sorted((ROOT / "cni" / "launcher").iterdir()),
    *(ROOT / name for name in ("README.md", "SECURITY.md", "plugin.spec", "pyproject.toml", "tests/README.md")),
]
NUMBERS = r"(?:,? (?:and |to )?\d[\d.]*(?:/\d+)?)+"
CONTRACT = re.compile(rf"\bcontract(?:'s)?({NUMBERS})")
KERNEL = re.compile(rf"\bkernel notes({NUMBERS})")
ROWS = re.compile(r"\bconformance((?:,? (?:and |to )?[A-Z]{1,2}\d+)+)")
SECTIONS = re.compile(rf"\bconformance({NUMBERS})")
PAGE = re.compile(r"docs/([a-z-]+\.md), \"([^\"]+)\"")
FILE = re.compile(r"(?<![\w/.-])((?:cni|docs|scripts|conf|tests)/[\w./-]*\w\.(?:py|md|json|yaml|service|conflist|sh))")
SHORT = re.compile(r"(?<![\w/.$<>*{}-])((?:[\w-]+/)*[\w-]+\.(?:py|md))(?![\w/*{])")
"""A file by the end of its path: `server.py`, `fence/loader.py`."""
ELSEWHERE = {
    "CONVENTIONS.md": "CNI's own page",
    "os.py": "of Python",
    "sitecustomize.py": "written by a test",
    "points.py": "written by a test",
    "broken/FAULT.py": "a pattern",
}
PATTERN = "x.py"
"""Ends the names that stand for any module: `cni/host/x.py`, `unit/test_x.py`."""


def text(path: Path) -> str:
    """A file with every comment's and docstring's line breaks made spaces, so that a citation may go over a line."""
    return re.sub(r"\s*\n\s*#?\s*", " ", path.read_text("utf-8"))


def headings(path: Path) -> set[str]:
    return {line.lstrip("#").strip() for line in path.read_text("utf-8").splitlines() if line.startswith("#")}


def numbers(of: set[str]) -> set[str]:
    """The numbers that headings begin with."""
    return {found.group(0).rstrip(".") for each in of if (found := re.match(r"\d[\d.]*", each))}


def contract() -> set[str]:
    """Sections of the contract, and the items of 5.3 as 5.3/N."""
    page = (REFERENCE / "contract.md").read_text("utf-8")
    weaknesses = page.split("## 5.3 ")[1].split("\n# ")[0]
    items = {f"5.3/{number}" for number in re.findall(r"^(\d+)\. ", weaknesses, re.MULTILINE)}
    return numbers(headings(REFERENCE / "contract.md")) | items


def conformance_rows() -> set[str]:
    """Rows of the tables, and the black-box cases of Part C."""
    page = (REFERENCE / "conformance.md").read_text("utf-8")
    cases = re.findall(r"\b([SLKIGFO]\d\d)\b", page.split("# Part C.")[1])
    return set(re.findall(r"^\| ([A-Z]{1,2}\d+)\b", page, re.MULTILINE)) | set(cases)


PLACES = {
    "contract": contract(),
    "kernel notes": numbers(headings(REFERENCE / "kernel-notes.md")),
    "conformance row": conformance_rows(),
    "conformance": numbers(headings(REFERENCE / "conformance.md")),
}


def cited(path: Path) -> Iterator[tuple[str, str]]:
    """(document, place) of every citation of docs/reference in a file."""
    body = text(path)
    for document, pattern in (("contract", CONTRACT), ("kernel notes", KERNEL), ("conformance", SECTIONS)):
        for run in pattern.findall(body):
            section = ""
            for number in re.findall(r"\d[\d.]*(?:/\d+)?", run):
                place = number.rstrip(".")
                # "5.3/22 and 23": the second is an item of the same section.
                if section and "/" not in place and "." not in place and document == "contract":
                    place = f"{section}/{place}"
                section = place.split("/")[0] if "/" in place else ""
                yield document, place
    for run in ROWS.findall(body):
        for row in re.findall(r"[A-Z]{1,2}\d+", run):
            yield "conformance row", row


CITATIONS = sorted({(str(path.relative_to(ROOT)), *each) for path in CITING for each in cited(path)})


def test_there_are_citations() -> None:
    assert len(CITATIONS) > 50


@pytest.mark.parametrize(("file", "document", "place"), CITATIONS, ids=lambda each: each)
def test_a_citation_stands_in_the_reference(file: str, document: str, place: str) -> None:
    assert place in PLACES[document], f"{file} cites {document} {place}"


@pytest.mark.parametrize("path", CITING, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_and_files_exist(path: Path) -> None:
    body = text(path)
    for page, heading in PAGE.findall(body):
        known = headings(ROOT / "docs" / page)
        assert any(heading in each for each in known), f'{path.name}: docs/{page} has no heading "{heading}"'
    for name in FILE.findall(body):
        if name in ELSEWHERE or name.endswith(PATTERN):
            continue
        assert (ROOT / name).exists() or "*" in name, f"{path.name} names {name}, which is not there"


FILES = [
    str(path.relative_to(ROOT))
    for folder in ("cni", "docs", "scripts", "tests")
    for path in (ROOT / folder).rglob("*.*")
]
FILES += [path.name for path in ROOT.iterdir()]


def missing(body: str) -> list[str]:
    """The files that a text names by the end of their paths, and that do not exist."""
    named = (name for name in SHORT.findall(body) if name not in ELSEWHERE and not name.endswith(PATTERN))
    return [name for name in named if not any(file == name or file.endswith(f"/{name}") for file in FILES)]


@pytest.mark.parametrize("path", CITING, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_named_without_their_folder_exist(path: Path) -> None:
    assert missing(path.read_text("utf-8")) == [], path.name


def test_a_file_that_was_renamed_is_seen() -> None:
    gone = "host/gone" + ".py"
    assert missing(f"see `{gone}`, `server.py` and docs/cli.md") == [gone]
