"""What mkdocs adds to the pages: the reference of ``conf/``, and the full tables of parity.md."""

from __future__ import annotations

import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from codetr.conf_folder import conf_folder

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools are not installed

from tools.docs.config_reference import reference_pages

REFERENCE = "reference"
PARITY_PAGE = "parity.md"
TABLES_MARK = "<!-- all quantities -->"
TABLES = Path("build/parity.md")
"""Relative to mkdocs.yml; written by scripts/parity.py, not under version control."""

NO_TABLES = (
    "This site was built without them: "
    f"`python scripts/parity.py FOLDER... --markdown {TABLES.as_posix()}` makes the file."
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add one page per group of ``conf/``."""
    for name, text in reference_pages(conf_folder()).items():
        files.append(File.generated(config, f"{REFERENCE}/{name}", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the tables of all quantities into parity.md, or how to make them."""
    if page.file.src_uri != PARITY_PAGE:
        return markdown
    tables = Path(config.config_file_path).parent / TABLES
    text = tables.read_text("utf-8") if tables.is_file() else NO_TABLES
    return with_all_quantities(markdown, text)


def with_all_quantities(markdown: str, text: str) -> str:
    """The page with ``text`` in place of its mark. Raises ValueError without exactly one mark."""
    if markdown.count(TABLES_MARK) != 1:
        raise ValueError(f"docs/{PARITY_PAGE} must hold the line {TABLES_MARK} once")
    return markdown.replace(TABLES_MARK, text)
