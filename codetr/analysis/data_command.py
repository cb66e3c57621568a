"""The command behind ``scripts/inspect_data.py``: report on a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from codetr.analysis.inspect_data import as_text, inspect_data, write_page
from codetr.data.class_choice import ClassChoice, with_classes
from codetr.data.images import PixelRules
from codetr.errors import UserError
from codetr.overrides import is_within, key_of
from codetr.settings import check_settings

LOOKED_AT = (
    *("data.root", "data.source", "data.boxes", "data.classes", "data.max_megapixels"),
    *("data.grey_bits", "data.derived", "experiment", "paths", "hydra", "out", "shown"),
)


def inspect(cfg: DictConfig, given: Sequence[str] = ()) -> None:
    """Inspect the data of ``cfg`` (conf/inspect_data.yaml): print the report and write the page.

    ``given`` are the overrides that ``cfg`` was composed with: one without effect is an error.
    Raises UserError for whatever a user can correct.
    """
    require_data(given)
    check_settings(cfg, given, nulls=True)
    data = cfg.data
    root, folder = Path(data.root).expanduser(), Path(data.derived).expanduser()
    choice = ClassChoice(**(data.classes or {}))
    splits = with_classes(instantiate(data.source)(root, data.boxes), choice, folder)
    rules = PixelRules(max_megapixels=data.max_megapixels, grey_bits=data.grey_bits)
    page = inspect_data(str(root), splits, cfg.shown, data.boxes, folder, rules)
    print(as_text(page))
    path = Path(cfg.out or f"inspect_{root.resolve().name}.html")
    print("wrote " + " and ".join(str(written) for written in write_page(page, path)))


def require_data(given: Sequence[str]) -> None:
    """Raise UserError for an override that has no effect on what is inspected."""
    for override in given:
        key = key_of(override)
        if key != "data" and not is_within(key, LOOKED_AT):
            raise UserError(
                f"{override}: changes nothing here, where only data=, data.root=, data.source, "
                "data.boxes, data.classes and how pixels are read count: leave it out"
            )
