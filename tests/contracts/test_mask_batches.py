"""Masks of several images at once are those of each image alone: of both branches, for images of
different sizes, also where one has no boxes. (Official code takes one image at a time.)
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import batch, build
from torch import Tensor

from codetr.boxes import cxcywh_to_xyxy
from codetr.structures import Batch, Detections, ImageInfo, Memory, Pyramid, Targets
from codetr.supervision.aux_heads.matched import Regions, RegionSampler
from codetr.training.branches import in_original

SIZES = [(128, 128), (128, 112), (96, 128)]
COUNTS = [(5, 0, 7), (0, 0, 3), (4, 6, 1), (0, 0, 0)]
Masked = Callable[[Memory, Sequence[Detections], Sequence[ImageInfo]], tuple[Detections, ...]]


def made(name: str) -> tuple[Any, Masked]:
    """A detector in float64, and what finds the masks of boxes in the original images."""
    torch.manual_seed(0)
    detector, schemes = build(
        ("one_to_one", "collaborative"), ("rcnn_mask", "atss"), "masks=refine_small"
    )
    detector.double().eval()
    scheme = schemes.double().eval()["collaborative"]

    def of_regions(
        memory: Memory, found: Sequence[Detections], infos: Sequence[ImageInfo]
    ) -> tuple[Detections, ...]:
        pixels = [
            replace(
                one, boxes_xyxy_px=one.boxes_xyxy_px * one.boxes_xyxy_px.new_tensor(i.scale * 2)
            )
            for one, i in zip(found, infos, strict=True)
        ]
        pyramid = scheme.auxiliary_pyramid(memory)
        return in_original(scheme.head("rcnn").with_masks(pyramid, pixels), infos)

    return detector, detector.mask_branch if name == "refine" else of_regions


def given(counts: Sequence[int]) -> tuple[Batch, list[ImageInfo], list[Detections]]:
    """Images, where they came from, and boxes in them that the networks did not choose."""
    data = batch((0,) * len(counts), 128).to(torch.float64)
    sizes = torch.tensor(SIZES)
    padding = torch.ones_like(data.images.padding)
    for mask, (height, width) in zip(padding, SIZES, strict=True):
        mask[:height, :width] = False
    images = replace(data.images, sizes=sizes, padded_sizes=sizes, padding=padding)
    infos, found = [], []
    for b, (count, (height, width)) in enumerate(zip(counts, SIZES, strict=True)):
        scale = (1.0 + 0.5 * b, 1.25)
        original = (round(height / scale[1]), round(width / scale[0]))
        infos.append(ImageInfo(image_id=b, original_size=original, scale=scale))
        corners = torch.rand(count, 2, 2, dtype=torch.float64).sort(dim=1).values
        boxes = corners.flatten(1) * torch.tensor(original).flip(0).repeat(2)
        scores = torch.rand(count, dtype=torch.float64).sort(descending=True).values
        labels = torch.randint(3, (count,))
        found.append(Detections(boxes_xyxy_px=boxes, scores=scores, labels=labels))
    return replace(data, images=images), infos, found


@pytest.mark.parametrize("name", ["refine", "rcnn_mask"])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
@torch.no_grad()
def test_a_batch_has_the_masks_of_its_images(name: str, counts: tuple[int, ...]) -> None:
    detector, masked = made(name)
    data, infos, found = given(counts)
    together = masked(detector.encode(data.images), found, infos)
    assert [len(one) for one in together] == list(counts)
    for b, one in enumerate(together):
        rows = slice(b, b + 1)
        memory = detector.encode(data.images.map(lambda v, rows=rows: v[rows]))
        (alone,) = masked(memory, found[rows], infos[rows])
        assert one.cells is not None
        assert alone.cells is not None
        torch.testing.assert_close(one.cells.probabilities, alone.cells.probabilities)
        torch.testing.assert_close(one.cells.scores, alone.cells.scores)
        size = infos[b].original_size
        assert torch.equal(one.bitmaps(size), alone.bitmaps(size))
        assert one.bitmaps(size).shape == (counts[b], *size)


@pytest.mark.parametrize("name", ["refine", "rcnn_mask"])
@pytest.mark.parametrize("counts", [(3, 2), (3, 0), (0, 2)], ids=str)
def test_a_batch_has_the_losses_of_its_regions(name: str, counts: tuple[int, int]) -> None:
    """The mean over the regions of all images: each image alone, weighted by its regions. An image
    without objects has none. (The finer stages of the refined masks count boundary cells instead.)
    """
    torch.manual_seed(0)
    detector, schemes = build(("one_to_one", "collaborative"), ("rcnn_mask",), "masks=refine_small")
    detector.double()
    schemes.double()
    data = batch(counts, 128).to(torch.float64)
    refine, head = schemes["masks"], schemes["collaborative"].head("rcnn")
    refine.stage_weights = (1.0, 0.0, 0.0, 0.0)
    sampled = RegionSampler(assigner=refine.assigner, sampler=refine.sampler, num_classes=3)
    regions = sampled([moved(target) for target in data.targets], data.targets)

    def loss(
        pyramid: Pyramid, regions: tuple[Regions, ...], targets: tuple[Targets, ...]
    ) -> Tensor:
        if name == "rcnn_mask":
            return head.mask_losses(pyramid, regions, targets)["mask"].value
        branch = detector.mask_branch
        labels = torch.cat([own.positive_labels for own in regions])
        detail = branch.head.detail(pyramid.maps[0])
        said = branch.predict(pyramid, [own.positive_boxes for own in regions], labels, detail)
        return refine.losses(said, regions, targets, 1.0)["mask"].value

    memory = detector.encode(data.images)
    together = loss(memory.pyramid(), regions, data.targets)
    numbers = torch.tensor([len(own.target) for own in regions], dtype=torch.float64)
    assert [bool(n) for n in numbers] == [bool(count) for count in counts]
    alone = []
    for b in range(len(counts)):
        rows = slice(b, b + 1)
        pyramid = memory.pyramid().map(lambda v, rows=rows: v[rows])
        alone.append(loss(pyramid, regions[rows], data.targets[rows]))
    torch.testing.assert_close(together, (torch.stack(alone) * numbers).sum() / numbers.sum())
    assert together > 0


def moved(targets: Targets) -> Tensor:
    """(3 N, 4) xyxy px: boxes near the true ones."""
    boxes = (cxcywh_to_xyxy(targets.boxes) * targets.size_whwh).repeat(3, 1)
    return boxes + 0.5 * torch.randn_like(boxes)
