"""List published weights, or fetch some: ``python scripts/zoo.py [NAME ...]``."""

import argparse

from rich.console import Console

from codetr.checkpoints.zoo import ZOO, find_entry, read_zoo, zoo_folder
from codetr.checkpoints.zoo_files import local_file
from codetr.checkpoints.zoo_table import zoo_tables
from codetr.training.shell import one_line_errors


def main() -> None:
    """List them, or fetch those named and print where they are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="weights to fetch; none: list all")
    parser.add_argument(
        "--trust", action="store_true", help="also what neither a revision nor a hash pins"
    )
    arguments = parser.parse_args()
    with one_line_errors():
        for name in arguments.names:
            print(local_file(find_entry(ZOO + name.removeprefix(ZOO)), arguments.trust))
        if not arguments.names:
            Console().print(*zoo_tables(read_zoo().values()))
            print(f"files and tables of your own: {zoo_folder()} (set by CODETR_HOME)")
