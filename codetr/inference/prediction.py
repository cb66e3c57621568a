"""Detections in an image with names, a picture, and conversions for other tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from codetr.classes import ClassList
from codetr.errors import UserError
from codetr.evaluation.detection_metric import detection_rows
from codetr.evaluation.encoding import encode
from codetr.evaluation.report import prediction_records
from codetr.inference.draw import draw_boxes
from codetr.masks import paste
from codetr.structures import Detections

T = TypeVar("T", bound="Prediction")

LEAST_NAMED = 64.0
"""Pixels of a box that has a label, in a picture that is smaller than its image."""


@dataclass(frozen=True, kw_only=True)
class Prediction(Detections):
    """Detections in one image, sorted by score: ``boxes_xyxy_px`` (n, 4) in its pixels, ``scores``
    (n,), ``labels`` (n,) class indices, and ``names``; ``masks`` if the model predicts masks.

    ``class_list``: all classes of the model; ``size``: (height, width) of the image; ``pixels``:
    the image, uint8 (H, W, 3) RGB, or a reduced copy of one that was read in regions.
    """

    class_list: ClassList
    size: tuple[int, int]
    pixels: np.ndarray

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of all classes of the model."""
        return self.class_list.names

    @property
    def names(self) -> tuple[str, ...]:
        """The class name of each detection."""
        return tuple(self.classes[label] for label in self.labels.tolist())

    @property
    def masks(self) -> Tensor | None:
        """(n, H, W) bool in pixels of the image, computed on every access; None if the model does
        not predict masks.
        """
        return None if self.cells is None else self.bitmaps(self.size)

    @property
    def mask_scores(self) -> Tensor | None:
        """(n,) confidence of each mask: the score of its box times the predicted IoU."""
        return None if self.cells is None else self.cells.scores

    def take(self: T, index: Tensor | slice) -> T:
        """The detections selected by ``index``, in the same image."""
        return super().take(index)  # ``pixels`` is not indexed, since it is not a tensor

    def drawn(self) -> Tensor:
        """The picture (3, h, w) with boxes, class names, scores and masks. A small one is enlarged
        so that labels are readable; in a reduced copy of the image, small boxes have no labels.
        """
        image = torch.from_numpy(self.pixels).permute(2, 0, 1)
        shown = image.shape[1], image.shape[2]
        y, x = (part / whole for part, whole in zip(shown, self.size, strict=True))
        boxes = self.boxes_xyxy_px * self.boxes_xyxy_px.new_tensor([x, y, x, y])
        scores = self.scores.float()
        masks = None if self.cells is None else paste(self.cells.probabilities, boxes, shown)
        least_named = 0.0 if shown == self.size else LEAST_NAMED
        return draw_boxes(
            image, boxes, self.labels, self.classes, scores, masks=masks, least_named=least_named
        )

    def plot(self) -> Image.Image:
        """``drawn`` as a Pillow image."""
        drawn: Image.Image = to_pil_image(self.drawn())
        return drawn

    def save(self, path: str | Path) -> Path:
        """Write ``plot`` to a file in the format of its suffix, and return the path.

        Raises UserError if Pillow does not support the format, or the file cannot be written.
        """
        path = Path(path).expanduser()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.plot().save(path)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{path}: the picture cannot be written ({error}): give a name that ends in .jpg "
                "or .png, in a folder that can be written"
            ) from error
        return path

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO results: ``image_id``, ``category_id`` of the training data, ``bbox`` (x, y, width,
        height in pixels) and ``score`` of each detection; with masks also ``segmentation``
        (compressed run lengths) and ``mask_score``.
        """
        masks = {} if self.cells is None else {image_id: encode(self, self.size)}
        return prediction_records({image_id: detection_rows(self)}, self.class_list, masks)

    def to_supervision(self) -> Any:
        """Convert to ``supervision.Detections`` with the names under ``class_name``.

        Raises UserError if that package is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise UserError(
                "to_supervision() needs the supervision package: pip install supervision"
            ) from error
        masks = self.masks
        return supervision.Detections(
            xyxy=self.boxes_xyxy_px.float().numpy(),
            confidence=self.scores.float().numpy(),
            class_id=self.labels.numpy(),
            mask=None if masks is None else masks.numpy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def to_fiftyone(self) -> Any:
        """Convert to ``fiftyone.Detections``: boxes (left, top, width, height) relative to the
        image, masks cropped to their boxes.

        Raises UserError if that package is not installed.
        """
        try:
            import fiftyone
        except ImportError as error:
            raise UserError(
                "to_fiftyone() needs the fiftyone package: pip install fiftyone"
            ) from error
        height, width = self.size
        boxes = self.boxes_xyxy_px.double()
        corners = boxes / boxes.new_tensor([width, height, width, height])
        shares = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()
        return fiftyone.Detections(
            detections=[
                fiftyone.Detection(
                    label=name,
                    bounding_box=share,
                    confidence=score,
                    mask=self._mask_within(number, share),
                )
                for number, (name, share, score) in enumerate(
                    zip(self.names, shares, self.scores.tolist(), strict=True)
                )
            ]
        )

    def _mask_within(self, number: int, share: Sequence[float]) -> np.ndarray | None:
        """``within`` of one detection's mask: a copy, without the bitmaps of all."""
        bitmaps = self.take(slice(number, number + 1)).masks
        return None if bitmaps is None else within(bitmaps[0], share).numpy().copy()

    def __repr__(self) -> str:
        height, width = self.size
        best = [f"{n} {s:.2f}" for n, s in zip(self.names[:3], self.scores.tolist(), strict=False)]
        shown = ", ".join(best) + (", ..." if len(self) > len(best) else "")
        return f"Prediction({len(self)} in {width} x {height} pixels: {shown})"


def within(bitmap: Tensor, share: Sequence[float]) -> Tensor:
    """The pixels of a mask (H, W) within a box (left, top, width, height) in shares of the image:
    those on which FiftyOne draws it, which rounds corners down; one at least.
    """
    height, width = bitmap.shape
    left, top = int(width * share[0]), int(height * share[1])
    right, bottom = int(width * (share[0] + share[2])), int(height * (share[1] + share[3]))
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    return bitmap[top : max(bottom, top + 1), left : max(right, left + 1)]
