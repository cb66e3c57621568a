"""Comparison of an exported file with PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codetr.boxes import cxcywh_to_xyxy
from codetr.errors import UserError
from codetr.inference.deployable import MASK_OUTPUTS, RAW_OUTPUTS, Deployable

MASKS = MASK_OUTPUTS[1]

Run = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""Runs a model on images (B, 3, H, W) uint8 and sizes (B, 2) int64."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Shape of an input: the number of images, and the height and width of their frames."""

    images: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """``distances`` of each detection to the nearest one of the other runtime: the maximum
    difference of probabilities and relative coordinates (at least 1 for another class), or the mean
    difference over mask cells if that is larger.
    """

    case: Case
    distances: Tensor

    def share_beyond(self, tolerance: float) -> float:
        """The share of detections without counterpart in the other runtime within ``tolerance``."""
        return (self.distances > tolerance).double().mean().item()

    def line(self, tolerance: float) -> str:
        """A summary for the terminal."""
        case = self.case
        return (
            f"{case.images} images of {case.height} x {case.width}: differences "
            f"median {self.distances.median():.1e}, largest {self.distances.max():.1e}, "
            f"{self.share_beyond(tolerance):.1%} of detections beyond {tolerance:g}"
        )


def as_cases(triples: Any) -> tuple[Case, ...]:
    """Cases from a list of (images, height, width). Raises UserError for anything else, and for an
    empty list.
    """
    if not is_list(triples) or not triples or not all(is_triple(t) for t in triples):
        raise UserError(
            f"cases={triples}: give a list of [images, height, width], each at least 1, such as "
            "cases=[[1,800,1344]]"
        )
    return tuple(Case(images=b, height=h, width=w) for b, h, w in triples)


def is_list(value: Any) -> bool:
    """Whether it is a list, including OmegaConf's; strings are not."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def is_triple(value: Any) -> bool:
    """Whether it is three whole numbers of at least 1."""
    return is_list(value) and len(value) == 3 and all(type(n) is int and n >= 1 for n in value)


def compare(model: Deployable, run: Run, case: Case) -> Difference:
    """Compare the exported file, executed by ``run``, with its model on random images."""
    images, sizes = random_inputs(case)
    results = [list(model(images, sizes)), list(run(images, sizes))]
    expected, found = (as_rows(result, model.outputs, sizes) for result in results)
    distances = torch.cdist(expected, found, p=torch.inf)
    void = expected.isnan().any(2)[:, :, None] | found.isnan().any(2)[:, None]
    if MASKS in model.outputs:
        place = model.outputs.index(MASKS)
        here, there = (result[place].flatten(2).double() for result in results)
        between = torch.cdist(here, there, p=1) / here.shape[-1]
        distances, void = torch.maximum(distances, between), void | between.isnan()
    distances = distances.masked_fill(void, torch.inf)  # cdist's maximum skips NaN
    both = torch.cat([distances.amin(2).flatten(), distances.amin(1).flatten()])
    return Difference(case=case, distances=both)


def as_rows(outputs: Sequence[Tensor], names: Sequence[str], sizes: Tensor) -> Tensor:
    """(B, n, D) with a row per detection or query: probability or probabilities, corners relative
    to the image, label, and the score of a mask.
    """
    if tuple(names) == RAW_OUTPUTS:
        logits, boxes = outputs
        return torch.cat([logits.sigmoid(), cxcywh_to_xyxy(boxes)], dim=-1).double()
    scores, labels, boxes, *masks = outputs
    size_whwh = sizes.flip(-1).repeat(1, 2)[:, None]
    columns = [scores[..., None], boxes / size_whwh, labels[..., None]]
    columns += [mask_scores[..., None] for mask_scores in masks[:1]]
    return torch.cat([column.double() for column in columns], dim=-1)


def random_inputs(case: Case) -> tuple[Tensor, Tensor]:
    """Random images, of which the last is smaller than its frame."""
    generator = torch.Generator().manual_seed(0)
    shape = (case.images, 3, case.height, case.width)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    sizes = torch.tensor([[case.height, case.width]] * case.images)
    sizes[-1] -= torch.tensor([case.height // 10, case.width // 8])
    return images, sizes


def run_pt2(path: Path) -> Run:
    """Load the file with PyTorch."""
    module = torch.export.load(path).module()
    return lambda images, sizes: module(images, sizes)


def run_onnx(path: Path) -> Run:
    """Load the file with ONNX Runtime on the CPU."""
    import onnxruntime  # optional: the extra "export"

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: Tensor, sizes: Tensor) -> Sequence[Tensor]:
        found = session.run(None, {"images": images.numpy(), "sizes": sizes.numpy()})
        return [torch.from_numpy(value) for value in found]

    return run
