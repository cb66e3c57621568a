"""No two functions of the package share more than ten lines."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOST = 10


class Anonymous(ast.NodeTransformer):
    """Leaves the form of code: no names of variables, no constants, no annotations."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(id="name", ctx=node.ctx)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant(value=0)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return ast.Constant(value=0)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(arg="name")


def functions(tree: ast.AST, inside: str = "") -> Iterator[tuple[str, list[str]]]:
    """Name and lines of every function that is in no other."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            body = node.body if ast.get_docstring(node) is None else node.body[1:]
            text = "\n".join(ast.unparse(Anonymous().visit(statement)) for statement in body)
            yield f"{inside}{node.name}", [line.strip() for line in text.splitlines()]
        elif isinstance(node, ast.ClassDef):
            yield from functions(node, f"{node.name}.")
        else:
            yield from functions(node, inside)


def repeated(code: dict[str, list[str]]) -> list[set[str]]:
    """Functions with ``MOST`` + 1 lines after each other in common."""
    places: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for name, lines in code.items():
        for start in range(len(lines) - MOST):
            places[tuple(lines[start : start + MOST + 1])].add(name)
    return [names for names in places.values() if len(names) > 1]


def test_no_two_functions_share_more_than_ten_lines() -> None:
    code = {
        f"{path.relative_to(ROOT)}::{name}": lines
        for top in ("codetr", "tools/docs", "tools/sweeps")
        for path in sorted((ROOT / top).rglob("*.py"))
        for name, lines in functions(ast.parse(path.read_text()))
    }
    assert len(code) > 1000
    assert repeated(code) == []


@pytest.mark.parametrize(("lines", "found"), [(10, False), (11, True)])
def test_other_names_and_numbers_hide_no_copy(lines: int, found: bool) -> None:
    one = "\n".join(f"        a = b(a, {i})[c.d]" for i in range(lines))
    other = "\n".join(f"    x = y(x, {2 * i})[z.d]" for i in range(lines))
    method = f"class A:\n    def f(self, a: int):\n{one}\n"
    function = f"def g(x):\n    '''Text.'''\n    if x: return\n{other}\n"
    code = dict(functions(ast.parse(method + function)))
    assert set(code) == {"A.f", "g"}
    assert repeated(code) == ([{"A.f", "g"}] if found else [])
