"""A metric that collects the detections of a split over batches and processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from codetr.structures import Detections, ImageInfo

_STATES = {
    "images": torch.zeros(0, 4, dtype=torch.int64),  # id, number of detections, height, width
    "rows": torch.zeros(0, 6, dtype=torch.float64),  # label, score, x, y, w, h
    "masks": torch.zeros(0, 2, dtype=torch.float64),  # score, number of bytes
    "mask_bytes": torch.zeros(0, dtype=torch.uint8),
}


@dataclass(frozen=True, kw_only=True)
class EncodedMasks:
    """The masks of an image's n detections, in the same order.

    ``counts``: compressed run lengths, as pycocotools' "counts"; ``scores`` (n,): mask scores;
    ``size``: height and width of the original image in pixels.
    """

    counts: Sequence[bytes]
    scores: Tensor
    size: tuple[int, int]


class DetectionMetric(Metric):
    """A metric of the detections of a split. Subclasses ``add`` them image by image. In
    ``compute``, ``rows_by_image`` and ``masks_by_image`` cover the images of all ranks, each image
    once however often it was added.

    The states stay on the CPU wherever the module is moved: a split may have millions of boxes.
    """

    images: list[Tensor]
    rows: list[Tensor]
    masks: list[Tensor]
    mask_bytes: list[Tensor]

    def __init__(self) -> None:
        super().__init__(dist_sync_fn=gather_by_way_of_the_device)
        for name in _STATES:
            self.add_state(name, [], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all detections."""
        super().reset()
        for name, empty in _STATES.items():
            # Never an empty list: to gather, ranks must agree on dtype and number of columns.
            setattr(self, name, [empty])

    @property
    def update_called(self) -> bool:
        """Always true, so that torchmetrics does not warn of a rank that has no image."""
        return True

    def add(self, found: Detections, info: ImageInfo, masks: EncodedMasks | None = None) -> None:
        """Add the detections of one image. Give ``masks`` for every image or for none."""
        self.images.append(torch.tensor([[info.image_id, len(found), *info.original_size]]))
        self.rows.append(detection_rows(found))
        if masks is not None:
            lengths = torch.tensor([len(one) for one in masks.counts], dtype=torch.float64)
            self.masks.append(torch.stack([masks.scores.detach().cpu().double(), lengths], dim=1))
            joined = bytearray(b"".join(masks.counts))
            if joined:
                self.mask_bytes.append(torch.frombuffer(joined, dtype=torch.uint8))

    def rows_by_image(self) -> dict[int, Tensor]:
        """By image id, rows (n, 6) float64 of label, score and x, y, w, h in pixels."""
        return self._by_image(dim_zero_cat(self.rows))

    def masks_by_image(self) -> dict[int, EncodedMasks]:
        """The masks by image id; empty where no detection has a mask."""
        masks, content = dim_zero_cat(self.masks), dim_zero_cat(self.mask_bytes).numpy().tobytes()
        if not len(masks):
            return {}
        ends = masks[:, 1].cumsum(0)
        starts = ends - masks[:, 1]
        parts = self._by_image(torch.stack([masks[:, 0], starts, ends], dim=1))
        sizes = {number: (h, w) for number, _, h, w in dim_zero_cat(self.images).tolist()}
        return {
            number: EncodedMasks(
                counts=[content[int(start) : int(end)] for _, start, end in part.tolist()],
                scores=part[:, 0],
                size=sizes[number],
            )
            for number, part in parts.items()
        }

    def _by_image(self, rows: Tensor) -> dict[int, Tensor]:
        """``rows`` split by image id; an image that was added again keeps its first rows."""
        images = dim_zero_cat(self.images)
        by_image: dict[int, Tensor] = {}
        parts = rows.split(images[:, 1].tolist())
        for number, part in zip(images[:, 0].tolist(), parts, strict=True):
            by_image.setdefault(number, part)
        return by_image

    def _apply(self, *_: Any, **__: Any) -> Self:
        return self  # neither moved nor cast with the parent module


def detection_rows(found: Detections) -> Tensor:
    """(n, 6) float64 rows of label, score and x, y, width, height in pixels, on the CPU."""
    boxes = found.boxes_xyxy_px.detach().cpu().double()
    columns = [found.labels[:, None].cpu().double(), found.scores[:, None].cpu().double()]
    return torch.cat([*columns, boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)


def gather_by_way_of_the_device(tensor: Tensor, group: Any = None) -> list[Tensor]:
    """The CPU tensors of all ranks, in rank order; for NCCL, by way of the GPU."""
    device = torch.device("cpu")
    if dist.get_backend(group) == "nccl":
        device = torch.device("cuda", torch.cuda.current_device())
    return [part.cpu() for part in gather_all_tensors(tensor.to(device), group)]
