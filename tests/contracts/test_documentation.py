"""The documentation: it builds, needs no network, and quotes what the code says."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FEWEST_WORDS = 3
"""Of a message, outside its values: fewer would match anything."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages; any warning of mkdocs is an error."""
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("material") is None:
        pytest.skip("mkdocs-material is not installed: pip install 'codetr[docs]'")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_built(site: Path) -> None:
    pages = [page.relative_to(DOCS).with_suffix(".html") for page in DOCS.rglob("*.md")]
    assert all((site / page).is_file() for page in pages)


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    loaded = re.compile(
        r"<(?:script|img|iframe|source)[^>]*\ssrc=\"?(?:https?:)?//"
        r"|<link[^>]*rel=\"?(?:stylesheet|preconnect)\"?[^>]*href=\"?(?:https?:)?//"
        r"|<link[^>]*href=\"?(?:https?:)?//[^>]*rel=\"?(?:stylesheet|preconnect)"
    )
    assert loaded.search('<script src="https://example.org/a.js">')
    found = [page.name for page in site.rglob("*.html") if loaded.search(page.read_text("utf-8"))]
    assert found == []


def test_template_of_the_model_card_is_shown(site: Path) -> None:
    assert "{{ card_data }}" in (site / "inference.html").read_text("utf-8")


def templates(path: Path) -> Iterator[re.Pattern[str]]:
    """The messages of all UserErrors in a module, with anything for their values."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "UserError":
            parts = _parts(node.args[0])
            words = re.findall(r"[a-z]{2,}", " ".join(part for part in parts if part))
            if len(words) >= FEWEST_WORDS:
                yield re.compile("".join(re.escape(p) if p else ".*" for p in parts))


def _parts(node: ast.expr) -> list[str]:
    """Texts of a message; "" for a value."""
    if isinstance(node, ast.JoinedStr):
        return [part for value in node.values for part in _parts(value)]
    if isinstance(node, ast.BinOp):
        return [*_parts(node.left), *_parts(node.right)]
    return [str(node.value)] if isinstance(node, ast.Constant) else [""]


def test_quoted_errors_are_those_of_the_code() -> None:
    known = [t for path in sorted((ROOT / "codetr").rglob("*.py")) for t in templates(path)]
    quoted = re.findall(r"^error: (.*)$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(quoted) > 20
    assert [line for line in quoted if not any(t.fullmatch(line) for t in known)] == []


def test_figures_can_be_drawn_again(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("make_figures", DOCS / "make_figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    drawn = {path.name for path in module.draw_all(tmp_path)}
    assert drawn == {path.name for path in (DOCS / "images").glob("method_*.png")}
    method = (DOCS / "method.md").read_text("utf-8")
    assert all(f"images/{name}" in method for name in drawn)
