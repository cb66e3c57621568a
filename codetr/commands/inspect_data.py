"""Look at a data set: ``python scripts/inspect_data.py data=custom data.root=FOLDER``.

Takes the words of train.py that choose data. Writes one HTML page with counts, problems, plots and
pictures, and a text report beside it, which is printed too.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import OmegaConf

from codetr.analysis.inspect_data import as_text, inspect_data, write_page
from codetr.checkpoints.experiment import compose_train
from codetr.data.class_choice import ClassChoice, with_classes
from codetr.data.images import PixelRules
from codetr.errors import UserError
from codetr.overrides import is_within, key_of
from codetr.settings import check_settings
from codetr.training.shell import one_line_errors, print_any_name

LOOKED_AT = (
    *("data.root", "data.source", "data.boxes", "data.classes", "data.max_megapixels"),
    *("data.grey_bits", "data.derived", "experiment", "paths"),
)


def require_data(overrides: Sequence[str]) -> None:
    """Raise UserError for an override that says nothing of which data is looked at."""
    for override in overrides:
        key = key_of(override)
        if key != "data" and not is_within(key, LOOKED_AT):
            raise UserError(
                f"{override}: changes nothing here, where only data=, data.root=, data.source, "
                "data.boxes, data.classes and how pixels are read count: leave it out"
            )


def main() -> None:
    """Inspect and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "overrides",
        nargs="+",
        metavar="KEY=VALUE",
        help="of data, as for train.py",
    )
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="default: inspect_NAME.html")
    parser.add_argument("--pictures", type=int, default=16, metavar="N", help="images per split")
    options = parser.parse_intermixed_args()
    print_any_name()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with one_line_errors():
        require_data(options.overrides)
        cfg = compose_train(options.overrides)
        check_settings(cfg, options.overrides, nulls=True)
        if OmegaConf.is_missing(cfg.data, "root"):
            raise UserError("data.root is not set: give data.root=FOLDER")
        root = Path(cfg.data.root).expanduser()
        data = cfg.data
        choice, folder = ClassChoice(**(data.classes or {})), Path(data.derived).expanduser()
        splits = with_classes(instantiate(data.source)(root, data.boxes), choice, folder)
        rules = PixelRules(max_megapixels=data.max_megapixels, grey_bits=data.grey_bits)
        page = inspect_data(str(root), splits, options.pictures, data.boxes, folder, rules)
        print(as_text(page))
        name = options.out or Path(f"inspect_{root.resolve().name}.html")
        print("wrote " + " and ".join(str(path) for path in write_page(page, name)))
