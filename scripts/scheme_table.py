"""Write the table of schemes in docs/method.md from conf/: python scripts/scheme_table.py"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from codetr.conf_folder import conf_folder
from codetr.training.error_lines import one_line_errors

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools are not installed

from tools.docs.recipe_table import with_tables
from tools.docs.scheme_table import BEGIN, END, families, scheme_table

PAGE = Path(__file__).resolve().parents[1] / "docs/method.md"


def main() -> None:
    """Compose every pair, and write between the marks of the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--page", type=Path, default=PAGE, help="the page")
    page: Path = parser.parse_args().page
    with one_line_errors():
        conf = conf_folder()
        schemes = sorted(path.stem for path in (conf / "scheme").glob("*.yaml"))
        table = scheme_table(families(conf), schemes)
        page.write_text(with_tables(page.read_text("utf-8"), table, page, BEGIN, END), "utf-8")
        print(f"wrote {page}")


if __name__ == "__main__":
    main()
