"""docs/reliability.md names tests that exist, in every row; and every scene and chaos test is in it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text()
FOLDERS = "binary|blackbox|chaos|kernel|mesh|safety|systemd|unit|upgrade"
NAMED = re.compile(rf"`((?:tests/)?(?:{FOLDERS})/[a-z_0-9]+\.py)(?:::([a-z_0-9]+))?`")


def rows() -> list[list[str]]:
    """The cells of every row of every table, without its head."""
    lines = [line for line in PAGE.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if row[0] != "what happens" and not row[0].startswith("---")]


def functions(path: str) -> set[str]:
    """The functions of a file of tests, those in classes too."""
    tree = ast.parse((ROOT / "tests" / path.removeprefix("tests/")).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def scenes() -> set[str]:
    """The scenes that are played."""
    tree = ast.parse((ROOT / "tests/chaos/scenes.py").read_text())
    (listed,) = [
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "SCENES" and node.value is not None
    ]
    return {name.id for name in ast.walk(listed) if isinstance(name, ast.Name)}


def test_there_are_rows() -> None:
    assert len(rows()) > 45


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:60])
def test_a_row_names_tests_that_exist(row: list[str]) -> None:
    found = NAMED.findall(row[-1])
    assert found, "no test is named"
    assert row[-1].count("`") == 2 * len(found), f"something else is named: {row[-1]}"
    for path, name in found:
        assert not name or name in functions(path), f"{path} has no {name}"


def test_whatever_else_the_page_names_exists() -> None:
    for path, name in NAMED.findall(PAGE):
        assert (ROOT / "tests" / path.removeprefix("tests/")).is_file(), path
        assert not name or name in functions(path), f"{path} has no {name}"


def test_every_scene_is_played_and_told() -> None:
    told = {name for path, name in NAMED.findall(PAGE) if path == "chaos/scenes.py"}
    assert told == scenes()


@pytest.mark.parametrize("file", ["test_taken.py", "test_time.py", "test_hostile.py", "test_pool.py"])
def test_every_chaos_test_is_told(file: str) -> None:
    told = {name for path, name in NAMED.findall(PAGE) if path == f"chaos/{file}"}
    tests = {name for name in functions(f"chaos/{file}") if name.startswith("test_")}
    assert tests - told - {"test_a_deletion_that_is_wrong_in_itself_still_says_so"} == set()
