"""The documentation: it builds, needs no network, and quotes what the code says."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from codetr.conf_folder import conf_folder
from tools.docs.config_reference import page_name
from tools.parity.check import Report, markdown
from tools.parity.table import Row

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
OWN_FILE = re.compile(r"(?<![\w/.])(?:codetr|conf|scripts|tests)/[\w/]+\.(?:py|sh|yaml)\b")


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


def module_of(name: str) -> ModuleType:
    """A Python file beside the pages."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_built(site: Path) -> None:
    pages = [page.relative_to(DOCS).with_suffix(".html") for page in DOCS.rglob("*.md")]
    assert all((site / page).is_file() for page in pages)


def test_every_group_of_conf_has_a_page(site: Path) -> None:
    conf = conf_folder()
    for path in conf.rglob("*.yaml"):
        group = path.parent.relative_to(conf).as_posix().removeprefix(".")
        page = (site / "reference" / page_name(group)).with_suffix(".html")
        assert f'<h2 id="{path.stem}">' in page.read_text("utf-8")
    assert not (DOCS / "reference").exists()  # built with the site, not committed


def test_parity_page_takes_all_quantities(site: Path) -> None:
    hooks = module_of("hooks")
    page = (DOCS / "parity.md").read_text("utf-8")
    assert "<details" not in page
    row = Row(quantity="out", absolute=0.0, relative=0.0, tolerance="equal", ok=True)
    tables = markdown([Report(title="a record", rows=(row,))])
    text = hooks.with_all_quantities(page, tables)
    assert "| out | 0.0e+00 | 0.0e+00 | equal | yes |" in text
    with pytest.raises(ValueError, match="once"):
        hooks.with_all_quantities(text, tables)


def test_parity_page_says_what_makes_its_tables(site: Path, tmp_path: Path) -> None:
    hooks = module_of("hooks")
    source = SimpleNamespace(file=SimpleNamespace(src_uri="parity.md"))
    config = SimpleNamespace(config_file_path=str(tmp_path / "mkdocs.yml"))
    mark = hooks.TABLES_MARK
    assert hooks.on_page_markdown(mark, source, config, None) == hooks.NO_TABLES
    (tmp_path / hooks.TABLES).parent.mkdir()
    (tmp_path / hooks.TABLES).write_text("the tables")
    assert hooks.on_page_markdown(mark, source, config, None) == "the tables"
    other = SimpleNamespace(file=SimpleNamespace(src_uri="log.md"))
    assert hooks.on_page_markdown(mark, other, config, None) == mark
    assert mark not in (site / "parity.html").read_text("utf-8")


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


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *DOCS.rglob("*.md")], ids=lambda p: p.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = set(OWN_FILE.findall(page.read_text(encoding="utf-8")))
    assert not [name for name in named if not (ROOT / name).exists()]


def test_figures_can_be_drawn_again(tmp_path: Path) -> None:
    drawn = {path.name for path in module_of("make_figures").draw_all(tmp_path)}
    assert drawn == {path.name for path in (DOCS / "images").glob("method_*.png")}
    method = (DOCS / "method.md").read_text("utf-8")
    assert all(f"images/{name}" in method for name in drawn)
