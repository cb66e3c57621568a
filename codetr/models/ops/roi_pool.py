"""Features of regions, each from the map that fits its size."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import roi_align

from codetr.boxes import area_xyxy, at_least_float32
from codetr.structures import Pyramid

FINEST_SCALE = 14
"""A region with sides below 2 * 14 cells of the finest map is read from that map."""


def roi_levels(rois: Tensor, finest_stride: int, num_levels: int) -> Tensor:
    """(R,) index of the map for ``rois`` (R, 4) xyxy px (Lin et al. 2017, FPN, eq. 1)."""
    side = area_xyxy(rois).sqrt()
    level = torch.log2(side / (FINEST_SCALE * finest_stride) + 1e-6).floor()
    return level.clamp(0, num_levels - 1).long()


def pool_rois(pyramid: Pyramid, rois: Sequence[Tensor], size: int = 7) -> Tensor:
    """(R, C, size, size) RoIAlign features of ``rois``: per image (R_b, 4) xyxy px, in order.

    Half-pixel aligned, with as many samples per bin as it has cells.
    """
    return pool_indexed(pyramid, with_image(rois), size)


def pool_indexed(pyramid: Pyramid, indexed: Tensor, size: int) -> Tensor:
    """The same of ``indexed`` (R, 5), the number of the image and xyxy px."""
    level = roi_levels(indexed[:, 1:], pyramid.strides[0], len(pyramid.maps))
    if torch.compiler.is_exporting():
        return _from_every_map(pyramid, indexed, level, size)
    # Sorting by level costs one transfer of the counts; a mask per level would cost one each.
    order = level.argsort(stable=True)
    numbers = torch.arange(len(pyramid.maps), device=level.device)
    counts = (level[:, None] == numbers).sum(dim=0).tolist()
    pooled = [
        align_rois(at_least_float32(features), part, size, 1 / stride)
        for features, stride, part in zip(
            pyramid.maps, pyramid.strides, indexed[order].split(counts), strict=True
        )
    ]
    return torch.cat(pooled)[order.argsort()].to(pyramid.maps[0].dtype)


def _from_every_map(pyramid: Pyramid, indexed: Tensor, level: Tensor, size: int) -> Tensor:
    """All regions pooled from every map, of which one is kept: an exported program cannot have a
    number of regions per map that depends on the data.
    """
    found = indexed.new_zeros(indexed.shape[0], pyramid.maps[0].shape[1], size, size)
    for number, (features, stride) in enumerate(zip(pyramid.maps, pyramid.strides, strict=True)):
        pooled = align_rois(at_least_float32(features), indexed, size, 1 / stride)
        found = torch.where((level == number)[:, None, None, None], pooled, found)
    return found.to(pyramid.maps[0].dtype)


def with_image(rois: Sequence[Tensor]) -> Tensor:
    """(R, 5) the number of the image, then the corners, of ``rois``: per image (R_b, 4).

    Corners that are not finite, of a broken model, become 0: there is no map for such a region, and
    no number of samples.
    """
    index = torch.cat([box.new_full((len(box), 1), image) for image, box in enumerate(rois)])
    corners = torch.cat(list(rois)).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return torch.cat([index, corners], dim=1)


def align_rois(features: Tensor, rois: Tensor, size: int, scale: float) -> Tensor:
    """(R, C, size, size) RoIAlign of ``rois`` (R, 5), image and xyxy px, on maps ``features``
    (B, C, H, W) of ``scale`` cells per pixel: half-pixel aligned, with as many samples per bin as
    it has cells.

    Our backward pass is for the CPU only: torchvision's is deterministic on other devices if
    that is required.
    """
    if features.device.type == "cpu" and not torch.compiler.is_exporting():
        found: Tensor = _RoiAlign.apply(features, rois, size, scale)
    else:
        found = roi_align(features, rois, size, scale, 0, aligned=True)
    return found


class _RoiAlign(torch.autograd.Function):
    """torchvision's operator on the CPU, where its backward pass uses one thread: here every thread
    has a share of the channels, which are independent.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, rois: Tensor, size: int, scale: float) -> Tensor:
        ctx.save_for_backward(rois)
        ctx.shape, ctx.size, ctx.scale = features.shape, size, scale
        return roi_align(features, rois, size, scale, 0, aligned=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (rois,) = ctx.saved_tensors
        batch, _, height, width = ctx.shape

        def channels(grad: Tensor) -> Tensor:
            found: Tensor = torch.ops.torchvision._roi_align_backward(
                grad, rois, ctx.scale, ctx.size, ctx.size,
                batch, grad.shape[1], height, width, 0, True,
            )  # fmt: skip
            return found

        threads = torch.get_num_threads()
        if threads == 1:
            return channels(grads[0]), None, None, None
        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(channels, grads[0].chunk(threads, dim=1)))
        return torch.cat(parts, dim=1), None, None, None
