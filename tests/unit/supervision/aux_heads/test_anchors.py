"""Anchor grids, offsets, and what an assignment stands for."""

import math

import pytest
import torch

from codetr.nms import ClasswiseNms
from codetr.structures import Pyramid, Targets
from codetr.supervision.aux_heads import rpn
from codetr.supervision.aux_heads.anchors import AnchorGrid, DeltaCoder, PointGrid
from codetr.supervision.aux_heads.layers import conv_tower
from codetr.supervision.aux_heads.matched import boxes_xyxy_px, match
from codetr.supervision.aux_heads.selection import DenseSelection, top_pairs

PYRAMID = Pyramid(maps=(torch.zeros(2, 3, 3, 4), torch.zeros(2, 3, 2, 2)), strides=(8, 16))
SIZES = torch.tensor([[24, 32], [17, 9]])


def test_grid_equals_a_loop_over_cells() -> None:
    grid = AnchorGrid(scales=(4.0, 5.0), ratios=(0.5, 2.0))
    anchors = grid(PYRAMID, SIZES)
    boxes, usable = [], []
    for (height, width), stride in zip(PYRAMID.shapes, PYRAMID.strides, strict=True):
        for row in range(height):
            for column in range(width):
                for ratio in (0.5, 2.0):
                    for scale in (4.0, 5.0):
                        w, h = scale * stride / ratio**0.5, scale * stride * ratio**0.5
                        x, y = column * stride, row * stride
                        boxes.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
                        usable.append(
                            [
                                row < math.ceil(h_image / stride)
                                and column < math.ceil(w_image / stride)
                                for h_image, w_image in SIZES.tolist()
                            ]
                        )
    torch.testing.assert_close(anchors.boxes, torch.tensor(boxes))
    assert anchors.usable.T.tolist() == usable
    assert anchors.level_sizes == (48, 16)
    assert anchors.strides.tolist() == [8] * 48 + [16] * 16


def test_points_equal_a_loop_over_cells() -> None:
    points = PointGrid()(PYRAMID, SIZES)
    centres, boxes = [], []
    for level, ((height, width), stride) in enumerate(
        zip(PYRAMID.shapes, PYRAMID.strides, strict=True)
    ):
        for row in range(height):
            for column in range(width):
                x, y = (column + 0.5) * stride, (row + 0.5) * stride
                half = 2 ** (level + 6) / 2
                centres.append([x, y])
                boxes.append([x - half, y - half, x + half, y + half])
    assert points.centres.tolist() == centres
    assert points.boxes.tolist() == boxes
    assert points.reach.tolist() == [[0, 64]] * 12 + [[64, math.inf]] * 4
    assert points.level_sizes == (12, 4)
    assert points.usable.shape == (2, 16)
    assert points.usable.all(), "in padding, too"


def test_published_reaches_of_five_levels() -> None:
    strides = (8, 16, 32, 64, 128)
    maps = tuple(torch.zeros(1, 1, 1, 1) for _ in strides)
    reach = PointGrid()(Pyramid(maps=maps, strides=strides), SIZES).reach
    upper = [64, 128, 256, 512, math.inf]
    assert reach.tolist() == [list(pair) for pair in zip([0, *upper[:-1]], upper, strict=True)]


def test_anchors_of_a_validation_can_be_used_in_training() -> None:
    grid = AnchorGrid(scales=(3.0,))
    with torch.inference_mode():
        grid(PYRAMID, SIZES)
    factor = torch.ones((), requires_grad=True)
    (grid(PYRAMID, SIZES).boxes * factor).sum().backward()
    assert factor.grad is not None


def test_rpn_grid_has_nine_anchors_of_three_areas() -> None:
    boxes = rpn.GRID(PYRAMID, SIZES).boxes[:9]
    area = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).reshape(3, 3)
    expected = torch.tensor([(32 * 2 ** (octave / 3)) ** 2 for octave in range(3)])
    torch.testing.assert_close(area, expected.expand(3, 3))


def test_decoding_inverts_encoding() -> None:
    coder = DeltaCoder(stds=(0.1, 0.1, 0.2, 0.2))
    anchors = torch.rand(20, 4, dtype=torch.float64).cumsum(1)
    boxes = torch.rand(20, 4, dtype=torch.float64).cumsum(1)
    torch.testing.assert_close(coder.decode(anchors, coder.encode(anchors, boxes)), boxes)


def test_decoded_sides_are_bounded() -> None:
    coder = DeltaCoder(stds=(1, 1, 1, 1))
    anchor = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    large = coder.decode(anchor, torch.tensor([[0.0, 0.0, 100.0, 100.0]]))
    torch.testing.assert_close(large, torch.tensor([[-492.0, -492.0, 508.0, 508.0]]))
    small = coder.decode(anchor, torch.tensor([[0.0, 0.0, -100.0, -100.0]]))
    torch.testing.assert_close(small[0, 2:] - small[0, :2], torch.full((2,), 0.256))


def test_match_finds_background_with_and_without_boxes() -> None:
    targets = Targets(
        boxes=torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.1, 0.2, 0.2, 0.4]]),
        labels=torch.tensor([3, 1]),
        weights=torch.ones(2),
        size=torch.tensor([100.0, 50.0]),
    )
    found = match(targets, torch.tensor([1, -1, 0, -2]), num_classes=7)
    assert found.labels.tolist() == [1, 7, 3, 7]
    torch.testing.assert_close(found.boxes[[2, 0]], targets.boxes)
    assert not found.boxes[[1, 3]].any()
    none = match(targets.map(lambda t: t[:0]), torch.tensor([-1, -2]), num_classes=7)
    assert none.labels.tolist() == [7, 7]
    corners = boxes_xyxy_px(targets.boxes, targets)
    torch.testing.assert_close(corners[0], torch.tensor([40.0, 15.0, 60.0, 35.0]))


@pytest.mark.parametrize(("normalised", "names"), [(True, "norm"), (False, "conv.bias")])
def test_tower_has_a_norm_or_a_bias(normalised, names) -> None:
    parameters = dict(conv_tower(32, 1, normalised=normalised).named_parameters())
    assert any(names in name for name in parameters)
    assert ("0.conv.bias" in parameters) != normalised


def test_top_pairs_drop_what_is_not_above_the_threshold() -> None:
    scores = torch.tensor([[0.1, 0.0], [0.9, 0.4], [0.0, 0.5]])
    row, column, value = top_pairs(scores, limit=4, threshold=0.1)
    assert list(zip(row.tolist(), column.tolist(), strict=True)) == [(1, 0), (2, 1), (1, 1)]
    torch.testing.assert_close(value, torch.tensor([0.9, 0.5, 0.4]))


def test_dense_selection_keeps_other_classes_and_ranks_by_quality() -> None:
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    boxes = torch.cat([box, box + 1, box + 100])
    scores = torch.tensor([[0.9, 0.0], [0.8, 0.7], [0.6, 0.0]])
    quality = torch.tensor([0.5, 1.0, 1.0])
    selection = DenseSelection(nms=ClasswiseNms(iou=0.5), per_level=2)
    found = selection(scores, boxes, level_sizes=(2, 1), quality=quality)
    # Of the first level only the two pairs of class 0 survive the cut; one suppresses the other.
    assert found.labels.tolist() == [0, 0]
    torch.testing.assert_close(found.scores, torch.tensor([0.8, 0.6]))
    torch.testing.assert_close(found.boxes_xyxy_px, boxes[1:])
    found = DenseSelection(nms=ClasswiseNms(iou=0.5))(scores, boxes, (2, 1), quality)
    assert found.labels.tolist() == [0, 1, 0]
