"""Print experiments' numbers of parameters: ``python scripts/parameters.py [NAME ...]``."""

import argparse
import sys
from pathlib import Path

from codetr.training.error_lines import one_line_errors

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tools are not installed

from tools.docs.parameters import count_experiments, parameter_table, read_official_counts

OFFICIAL = Path(__file__).parents[1] / "tests/golden/official_parameters.json"


def main() -> None:
    """Count, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="experiments; none: all with an official number")
    parser.add_argument("--official", default=OFFICIAL, help="a table of official numbers (JSON)")
    arguments = parser.parse_args()
    with one_line_errors():
        official = read_official_counts(arguments.official)
        names = arguments.names or list(official)
        print(parameter_table(count_experiments(names, official), official))


if __name__ == "__main__":
    main()
