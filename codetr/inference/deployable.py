"""The detector for export: tensors in, tensors out, with preprocessing and top-k included."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from codetr.boxes import cxcywh_to_xyxy
from codetr.errors import UserError
from codetr.models.masks import MaskBranch
from codetr.models.masks.refine import refined
from codetr.structures import Images, Memory, Predictions

RAW_OUTPUTS = ("logits", "boxes")
TOP_OUTPUTS = ("scores", "labels", "boxes_xyxy_px")
MASK_OUTPUTS = ("mask_scores", "masks")


class Deployable(nn.Module):
    """A detector with plain tensors as inputs and outputs, for export.

    Normalisation by ``mean`` and ``std`` (RGB, 0 to 255) is included. With ``top_k`` the outputs
    are ``scores`` (B, k), ``labels`` (B, k) int64 and ``boxes_xyxy_px`` (B, k, 4) in pixels of the
    input, sorted by score; without (None) ``logits`` (B, Q, K) before the sigmoid, or for softmax
    with background (B, Q, K + 1), and ``boxes`` (B, Q, 4) cxcywh relative to the valid area.
    Overlapping boxes are not suppressed.

    With ``top_k`` a detector with a mask branch also returns ``mask_scores`` (B, k) and ``masks``
    (B, k, S, S), probabilities on a grid of S x S cells in each box (see ``codetr.masks.paste``).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, detector: nn.Module, mean: Sequence[float], std: Sequence[float], top_k: int | None
    ) -> None:
        super().__init__()
        if top_k is not None and top_k < 1:
            raise UserError(f"top_k={top_k}: give 1 or more, or null for the raw outputs")
        self.detector, self.top_k = detector, top_k
        self.register_buffer("mean", torch.tensor(list(mean))[:, None, None])
        self.register_buffer("std", torch.tensor(list(std))[:, None, None])

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what ``forward`` returns."""
        if self.top_k is None:
            return RAW_OUTPUTS
        return TOP_OUTPUTS if self.mask_branch is None else (*TOP_OUTPUTS, *MASK_OUTPUTS)

    @property
    def mask_branch(self) -> MaskBranch | None:
        """The mask branch of the detector, if any."""
        return getattr(self.detector, "mask_branch", None)

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """``images`` (B, 3, H, W) uint8 RGB; ``sizes`` (B, 2) int64, the (height, width) of each
        image, which is at the top left of its frame. The rest is padding with arbitrary values.
        """
        height, width = images.shape[-2:]
        rows = torch.arange(height, device=images.device) < sizes[:, :1]
        columns = torch.arange(width, device=images.device) < sizes[:, 1:]
        padding = ~(rows[:, :, None] & columns[:, None])
        pixels = (images.float() - self.mean) / self.std
        given = Images(
            pixels=pixels.masked_fill(padding[:, None], 0.0),
            padding=padding,
            sizes=sizes,
            padded_sizes=sizes,
        )
        if self.top_k is None or self.mask_branch is None:
            found = self.detector(given)
            if self.top_k is None:
                return found.logits, found.boxes
            return self._top(found, self.top_k, sizes)
        memory = self.detector.encode(given)  # type: ignore[operator]
        best = self._top(self.detector.predict(memory), self.top_k, sizes)  # type: ignore[operator]
        return (*best, *_masks(self.mask_branch, memory, *best))

    def _top(self, found: Predictions, top_k: int, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The ``top_k`` pairs of query and class, as in ``codetr.evaluation.Postprocess`` without
        NMS.
        """
        num_classes, most = found.num_classes, found.classification.most_detections(found.logits)
        best, pair = found.scores().flatten(1).topk(min(top_k, most), dim=1)
        query = torch.div(pair, num_classes, rounding_mode="floor")
        chosen = found.boxes.gather(1, query[..., None].expand(-1, -1, 4))
        size_whwh = sizes.flip(-1).repeat(1, 2)[:, None].to(chosen.dtype)
        corners = (cxcywh_to_xyxy(chosen) * size_whwh).clamp(min=0)
        return best, pair - query * num_classes, torch.minimum(corners, size_whwh)


def _masks(
    branch: MaskBranch, memory: Memory, scores: Tensor, labels: Tensor, boxes: Tensor
) -> tuple[Tensor, Tensor]:
    """Mask scores (B, k) and probabilities (B, k, S, S) for ``boxes`` (B, k, 4) xyxy px."""
    image = torch.arange(boxes.shape[0], device=boxes.device)[:, None, None].expand(
        *labels.shape, 1
    )
    rois = torch.cat([image.to(boxes), boxes], dim=-1).flatten(0, 1)
    pyramid = memory.pyramid()
    detail = branch.head.detail(pyramid.maps[0])
    masks = branch.of_regions(pyramid, rois, labels.flatten(), detail)
    cells = refined(masks.stages).sigmoid()
    return scores * masks.iou.unflatten(0, labels.shape), cells.unflatten(0, labels.shape)
