"""Write the tables of docs/recipes.md from conf/experiment: python scripts/recipe_tables.py"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from codetr.conf_folder import conf_folder
from codetr.training.error_lines import one_line_errors

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools are not installed

from tools.docs.parameters import read_official_counts
from tools.docs.recipe_table import (
    publications,
    recipe,
    recipe_tables,
    remark_table,
    with_tables,
)

ROOT = Path(__file__).resolve().parents[1]
HEADING = "### What differs in single recipes"
OFFICIAL = ROOT / "tests/golden/official_parameters.json"


def main() -> None:
    """Read conf/experiment, and write between the marks of the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--page", type=Path, default=ROOT / "docs/recipes.md", help="the page")
    page: Path = parser.parse_args().page
    with one_line_errors():
        published = publications(conf_folder())
        recipes = [recipe(publication) for publication in published]
        counts = {n: c.parameters for n, c in read_official_counts(OFFICIAL).items()}
        tables = f"{recipe_tables(recipes, counts)}\n\n{HEADING}\n\n{remark_table(published)}"
        page.write_text(with_tables(page.read_text("utf-8"), tables, page), encoding="utf-8")
        print(f"wrote {len(recipes)} recipes in {page}")


if __name__ == "__main__":
    main()
