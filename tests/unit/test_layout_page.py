"""docs/development.md leads to the code: the layout has every module of the upper folders, and every path exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "development.md").read_text("utf-8")
PATH = re.compile(r"`((?:[\w-]+/)*(?:[\w-]+\.py|[\w-]+/))`")


def section(title: str) -> list[str]:
    """The table rows of a section, without the header."""
    body = PAGE.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    return [line for line in body.splitlines() if line.startswith("|")][2:]


def cell(row: str, at: int) -> str:
    """One cell of a row, from the left, or from the right with a negative number."""
    return [text.strip() for text in row.strip("|").split("|")][at]


def placed(row: str) -> list[str]:
    """The paths of a row of the layout; a name without a folder has the folder of the name before."""
    folder, paths = "", []
    for name in PATH.findall(cell(row, 0)):
        paths.append(name if "/" in name else folder + name)
        folder = paths[-1].rpartition("/")[0] + "/"
    return paths


LAYOUT = [path for row in section("Layout") for path in placed(row)]


def test_the_layout_has_every_upper_module_and_folder_once() -> None:
    there = {
        f"{path.relative_to(ROOT)}{'/' if path.is_dir() else ''}"
        for upper in ("cni", "cni/daemon")
        for path in (ROOT / upper).iterdir()
        if path.name not in ("__init__.py", "__pycache__", "daemon")
        and (path.suffix == ".py" or any(part.is_file() and part.suffix != ".pyc" for part in path.rglob("*")))
    }
    assert sorted(LAYOUT) == sorted(there)


@pytest.mark.parametrize("row", section("Glossary"), ids=lambda row: cell(row, 0))
def test_a_word_leads_to_modules_that_exist(row: str) -> None:
    paths = [name if name.startswith("cni/") else f"cni/daemon/{name}" for name in PATH.findall(cell(row, -1))]
    assert paths, "the last column names no module"
    assert [path for path in paths if not (ROOT / path).exists()] == []
