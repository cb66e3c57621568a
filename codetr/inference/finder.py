"""Detection in images: preprocessing, the detector, and postprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from codetr.data.augment import Augmentation
from codetr.data.collate import Collate
from codetr.data.prepare import prepared
from codetr.data.regions import Regions
from codetr.errors import UserError, first_line
from codetr.evaluation import Postprocess
from codetr.evaluation.detect import detect
from codetr.inference.grouping import grouped
from codetr.structures import Detections

PRECISIONS: dict[str, torch.dtype | None] = {"32": None, "bf16": torch.bfloat16}
"""Autocast dtypes by name; None: no autocast."""


@dataclass(frozen=True)
class DetectorFinder:
    """A ``Finder`` that runs a detector on a single view, on ``batch`` images at a time.

    ``resize`` and ``collate`` are those of its evaluation. The detector is in eval mode on
    ``device``. Images are padded to the largest in their batch, as in evaluation.
    """

    detector: nn.Module
    resize: Augmentation
    collate: Collate
    postprocess: Postprocess
    device: torch.device
    autocast: torch.dtype | None = None
    batch: int = 1

    def __call__(self, images: Sequence[Regions]) -> tuple[Detections, ...]:
        """One ``Detections`` per uint8 image (3, H, W), on the CPU."""
        found: list[Detections] = []
        for group in grouped(images, self.batch):
            found += self._together(group)
        return tuple(found)

    @torch.inference_mode()
    def _together(self, images: Sequence[Regions]) -> list[Detections]:
        batch = self.collate([prepared(image, self.resize) for image in images])
        on_device = batch.images.to(self.device)
        with torch.autocast(
            self.device.type, dtype=self.autocast, enabled=self.autocast is not None
        ):
            found = detect(self.detector, self.postprocess, on_device, batch.infos)
        return [one.to("cpu") for one in found]


def choose_device(name: str) -> torch.device:
    """The device ``name``, any of PyTorch's; ``auto`` is a CUDA GPU if there is one, else the CPU.

    Raises UserError if it is not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = first_line(error)
        raise UserError(f"device={name}: not available ({reason}): use device=auto") from None
    return device


def choose_precision(name: str | int) -> torch.dtype | None:
    """The autocast dtype for ``32`` or ``bf16``. Raises UserError for other names."""
    if str(name) not in PRECISIONS:
        raise UserError(f"precision={name}: give one of {', '.join(PRECISIONS)}")
    return PRECISIONS[str(name)]
