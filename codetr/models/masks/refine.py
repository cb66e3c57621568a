"""RefineMask (Zhang et al. 2021, arXiv 2104.08569) as in Co-DETR's instance models: masks in
several stages, each at twice the resolution, with detail from a fine map of the whole image.

Official parameter names (Sense-X/Co-DETR ``SimpleRefineMaskHead``) and ours: ``norm_layer`` is
``norm``, ``stage_instance_logits`` is ``classify``; in a stage ``semantic_transform_in`` is
``reduce``, ``fuse_conv.0`` is ``fuse``, ``fuse_conv.1`` is ``context`` with its
``dilation_conv_{1,2,3}.conv`` as ``branches.{0,1,2}`` and ``merge_conv.conv`` as ``merge``, and
``fuse_transform_out`` is ``narrow``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codetr.boxes import at_least_float32
from codetr.models.layers.class_maps import maps_of_class
from codetr.models.masks.boundary import boundary, enlarged, enlarged_region
from codetr.models.masks.convs import NormedConv, dilated, pointwise
from codetr.models.ops.roi_pool import align_rois

STAGES = 3
DILATIONS = (1, 3, 5)
REFINED_FROM = 1
"""The first stage whose masks are refined at their boundary; those before only train."""


class Context(nn.Module):
    """Sums convolutions of several dilations and the mean of the region, and mixes channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(dilated(channels, dilation) for dilation in DILATIONS)
        self.merge = pointwise(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        """(R, C, S, S) to the same shape."""
        mean = features.mean(dim=(2, 3), keepdim=True)
        near, middle, far = (branch(features).relu() for branch in self.branches)
        merged: Tensor = self.merge(near + middle + far + mean)
        return merged


class RefineStage(nn.Module):
    """From region features of ``channels`` to half as many, with the map's detail and the mask so
    far. ``map_channels`` of the map of the whole image.
    """

    def __init__(self, channels: int, map_channels: int) -> None:
        super().__init__()
        self.reduce = pointwise(map_channels, channels)
        self.fuse = pointwise(2 * channels + 1, channels)
        self.context = Context(channels)
        self.narrow = pointwise(channels, channels // 2 - 1)

    def forward(
        self, features: Tensor, mask: Tensor, detail: Tensor, rois: Tensor, scale: float
    ) -> Tensor:
        """``features`` (R, C, S, S), probabilities ``mask`` (R, 1, S, S), the map ``detail``
        (B, M, H, W) of ``scale`` cells per pixel and ``rois`` (R, 5), image and xyxy px, to
        (R, C / 2, S, S), of which the last channel is the mask.
        """
        reduced = at_least_float32(self.reduce(detail).relu())
        seen = align_rois(reduced, rois.to(reduced), features.shape[-1], scale)
        fused = self.fuse(torch.cat([features, seen.to(features), mask], dim=1)).relu()
        narrow = self.narrow(self.context(fused).relu()).relu()
        return torch.cat([narrow, mask], dim=1)


class RefineMaskHead(nn.Module):
    """Masks of regions at four resolutions: ``roi_size`` cells per side, then 2, 4 and 8 times as
    many. The last has one map for all classes, the others one per class.

    ``channels`` of the maps must be a multiple of 8.
    """

    def __init__(self, *, num_classes: int, channels: int, roi_size: int = 14) -> None:
        super().__init__()
        self.roi_size = roi_size
        self.instance_convs = nn.Sequential(NormedConv(channels, channels))
        self.semantic_convs = nn.Sequential(
            NormedConv(channels, channels), NormedConv(channels, channels)
        )
        widths = [channels // 2**stage for stage in range(STAGES + 1)]
        self.stages = nn.ModuleList(RefineStage(width, channels) for width in widths[:-1])
        outputs = [num_classes] * STAGES + [1]
        self.classify = nn.ModuleList(map(pointwise, widths, outputs))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Cells per side of the masks of every stage."""
        return tuple(self.roi_size * 2**stage for stage in range(STAGES + 1))

    def detail(self, features: Tensor) -> Tensor:
        """Features of the finest map (B, C, H, W) for the stages: the same shape."""
        found: Tensor = self.semantic_convs(features)
        return found

    def forward(
        self, features: Tensor, labels: Tensor, detail: Tensor, rois: Tensor, scale: float
    ) -> tuple[Tensor, ...]:
        """Logits (R, S, S) of every stage, of the class ``labels[r]``, at least float32.

        ``features`` (R, C, roi_size, roi_size) of the regions; the rest as in ``RefineStage``.
        """
        found = []
        hidden = self.instance_convs(features)
        for number, stage in enumerate(self.stages):
            logits = maps_of_class(self.classify[number], hidden, labels)  # type: ignore[arg-type]
            found.append(at_least_float32(logits))
            hidden = stage(hidden, logits.sigmoid()[:, None], detail, rois, scale)
            if number < STAGES - 1:
                size = self.sizes[number + 1]
                hidden = F.interpolate(hidden, (size, size), mode="bilinear", align_corners=False)
        last = at_least_float32(self.classify[-1](hidden).squeeze(1))
        return (*found, enlarged(last, self.sizes[-1]))


def refined(stages: tuple[Tensor, ...]) -> Tensor:
    """(R, S, S) logits at the finest resolution: those of a stage at the boundary of the previous
    mask, elsewhere the previous ones, enlarged. ``stages`` as ``RefineMaskHead`` returns them.
    """
    coarse = stages[REFINED_FROM]
    for fine in stages[REFINED_FROM + 1 :]:
        size = fine.shape[-1]
        edge = enlarged_region(boundary(coarse.sigmoid() >= 0.5, 1), size)
        coarse = torch.where(edge, fine, enlarged(coarse, size))
    return coarse
