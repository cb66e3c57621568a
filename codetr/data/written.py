"""What annotations of a COCO file say beside box and class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codetr.data.formats.found import shown
from codetr.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Written:
    """What A annotations say beside their boxes: ``sides`` (A, 2) float64, width and height in
    pixels before they were added to a corner; ``area`` (A,) float64 in pixels, the product of both
    where there is none; ``ignore`` (A,) bool.
    """

    sides: Tensor
    area: Tensor
    ignore: Tensor


def read_written(annotations: Sequence[Mapping[str, Any]], path: Path) -> Written:
    """Of COCO ``annotations`` (A) whose boxes were checked. Raises UserError for an area that is no
    number.
    """
    sides = torch.tensor([a["bbox"][2:] for a in annotations], dtype=torch.float64).reshape(-1, 2)
    areas = [a.get("area") for a in annotations]
    for annotation, area in zip(annotations, areas, strict=True):
        if not (area is None or is_number(area)):
            raise UserError(
                f"annotation {shown(annotation.get('id'))} in {path} has area {shown(area)}: it "
                "must be a number of pixels, or left out"
            )
    missing = torch.tensor([area is None for area in areas], dtype=torch.bool)
    given = torch.tensor([0.0 if area is None else area for area in areas], dtype=torch.float64)
    return Written(
        sides=sides,
        area=torch.where(missing, sides.prod(dim=1), given),
        ignore=torch.tensor([bool(a.get("ignore")) for a in annotations], dtype=torch.bool),
    )


def is_number(value: Any) -> bool:
    """A float (also one that is not finite), or an integer that a tensor can hold."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)
