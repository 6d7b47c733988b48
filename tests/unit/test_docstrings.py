"""A public function that raises says so in its docstring: by the exception's name, or by what it refuses."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
Function = ast.FunctionDef | ast.AsyncFunctionDef
INNER = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
WORDS = ("aise", "efuse", "ever fails")
"""Parts of the sentences that tell of errors."""


def public_functions(tree: ast.AST, outer: str = "") -> Iterator[tuple[str, Function]]:
    """(qualified name, function) of every public function and method."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node, f"{outer}{node.name}.")
        elif isinstance(node, Function) and not node.name.startswith("_"):
            yield f"{outer}{node.name}", node


def raised(function: ast.AST) -> Iterator[str]:
    """The names of the exceptions that the function itself raises; `raise` alone and `raise error` name none."""
    for node in ast.iter_child_nodes(function):
        if isinstance(node, INNER):
            continue
        if isinstance(node, ast.Raise) and node.exc is not None:
            kind = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            name = ast.unparse(kind).rpartition(".")[2]
            if name[:1].isupper():
                yield name
        yield from raised(node)


def silent(source: str) -> list[str]:
    """The public functions that raise and do not say so."""
    wrong = []
    for name, function in public_functions(ast.parse(source)):
        text, kinds = ast.get_docstring(function) or "", sorted(set(raised(function)))
        if kinds and not any(word in text for word in (*kinds, *WORDS)):
            wrong.append(f"{name} raises {', '.join(kinds)}")
    return wrong


@pytest.mark.parametrize("path", sorted((ROOT / "cni").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_function_that_raises_says_so(path: Path) -> None:
    assert silent(path.read_text("utf-8")) == []


def test_a_silent_function_is_seen() -> None:
    source = """
def a(): "Does it."; raise ValueError("x")
def b(): "Does it. Raises ValueError."; raise ValueError("x")
class C:
    def d(self):
        "Does it."
        try: pass
        except OSError as error: raise errors.Lost(1) from error
    def _e(self): raise ValueError
def f():
    "Does it."
    def inner(): raise ValueError
    raise
"""
    assert silent(source) == ["a raises ValueError", "C.d raises Lost"]
