"""What ATSS, RetinaNet, FCOS, PAA and GFL have in common, on batches with few or many boxes."""

import pytest
import torch
from torch import Tensor, nn

from codetr.loss_terms import total_loss
from codetr.structures import Batch, Detections, Pyramid
from codetr.supervision.assigners.sampling import positives_first
from codetr.supervision.aux_heads.anchors import AnchorGrid
from codetr.supervision.aux_heads.atss import AtssHead
from codetr.supervision.aux_heads.fcos import FcosHead
from codetr.supervision.aux_heads.gfl import GflHead
from codetr.supervision.aux_heads.paa import PaaHead
from codetr.supervision.aux_heads.retinanet import RetinaNetHead
from codetr.training.losses import divided

CLASSES = 5
HEADS = {
    "atss": AtssHead,
    "retinanet": RetinaNetHead,
    "fcos": FcosHead,
    "paa": PaaHead,
    "gfl": GflHead,
}
EACH = pytest.mark.parametrize("name", HEADS)
COUNTS = [(3, 1), (1, 1), (0, 2), (0, 0), (300, 3)]


def build(name: str, **settings: object) -> nn.Module:
    levels = {} if name == "retinanet" else {"num_levels": 3}
    return HEADS[name](num_classes=CLASSES, channels=32, **levels, **settings)


def run(head: nn.Module, pyramid: Pyramid, batch: Batch) -> Tensor:
    total = total_loss(head(pyramid, batch).losses)
    total.backward()
    return total.detach()


@EACH
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_every_parameter_gets_a_gradient(name, counts, small_batch) -> None:
    pyramid, batch = small_batch(counts)
    head = build(name)
    output = head(pyramid, batch)
    total_loss(output.losses).backward()
    for key, parameter in head.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    for key, term in output.losses.items():
        if key == "cls":
            assert term.value > 0
        else:
            assert (term.value > 0) == (sum(counts) > 0), key
    for found, count in zip(output.candidates, counts, strict=True):
        positive = found.labels < CLASSES
        assert bool(positive.any()) == (count > 0)
        assert not found.targets[~positive].any()
        assert found.boxes.shape == found.targets.shape == (len(found), 4)
        assert found.features.shape == (len(found), 32)
        assert found.features.requires_grad
        assert not found.boxes.requires_grad


@EACH
@pytest.mark.parametrize("depth", range(6))
def test_number_of_convolutions(name, depth, small_batch) -> None:
    pyramid, batch = small_batch((2, 1))
    head = build(name, num_convs=depth)
    convolutions = [m for m in head.modules() if isinstance(m, nn.Conv2d)]
    branches = 2 + (name in ("atss", "fcos", "paa"))
    assert len(convolutions) == 2 * depth + branches
    assert run(head, pyramid, batch).isfinite()


@EACH
def test_weights_scale_their_loss_alone(name, small_batch) -> None:
    pyramid, batch = small_batch((3, 2))
    head = build(name)
    for key, term in head(pyramid, batch).losses.items():
        assert getattr(head, f"{key}_weight") == term.weight
        torch.manual_seed(0)
        other = build(name, **{f"{key}_weight": 7.0})
        assert other(pyramid, batch).losses[key].weight == 7.0


@EACH
def test_candidates_are_the_assigned_boxes_and_their_features(name, small_batch) -> None:
    """Targets are true boxes with their labels, features the map's vector at the box's centre."""
    pyramid, batch = small_batch((3, 2))
    head = build(name)
    vectors = torch.cat([m.flatten(2).transpose(1, 2) for m in pyramid.maps], dim=1)
    for image, (found, target) in enumerate(
        zip(head(pyramid, batch).candidates, batch.targets, strict=True)
    ):
        truth = {
            (label, *box): box
            for label, box in zip(target.labels.tolist(), target.boxes.tolist(), strict=True)
        }
        positive = (found.labels < CLASSES).nonzero().squeeze(1)
        for index in positive.tolist():
            key = (found.labels[index].item(), *found.targets[index].tolist())
            assert key in truth
            x, y = (found.boxes[index, :2] * target.size).tolist()
            half = 0.5 if name == "fcos" else 0.0
            rows, start = [], 0
            for (height, width), stride in zip(pyramid.shapes, pyramid.strides, strict=True):
                column, row = x / stride - half, y / stride - half
                if (
                    abs(column - round(column)) + abs(row - round(row)) < 1e-3
                    and round(row) < height
                    and round(column) < width
                ):
                    rows.append(start + round(row) * width + round(column))
                start += height * width
            mine = found.features[index]
            assert any(torch.equal(mine, vectors[image, r]) for r in rows)


@EACH
def test_only_fcos_learns_from_the_padding_of_an_image(name, small_batch) -> None:
    pyramid, batch = small_batch((2, 2))
    head = build(name)
    sizes = batch.images.padded_sizes
    grid, predictions = head.grid(pyramid, sizes), head.predictions(pyramid)
    wanted = head.targets(head.assign(predictions, grid, batch), grid, batch)
    before = head.losses(predictions, grid, wanted)
    outside = ~AnchorGrid(scales=(1.0,))(pyramid, sizes).usable
    outside = outside.repeat_interleave(9 if name == "retinanet" else 1, dim=1)
    assert outside.any()
    changed = predictions.map(lambda value: value.detach().clone())
    for value in (changed.logits, changed.regression, changed.quality):
        if value is not None:
            value[outside] += 3
    after = head.losses(changed, grid, wanted)
    for key, term in before.items():
        same = torch.allclose(term.value, after[key].value)
        assert same == (name != "fcos" or key != "cls"), key


@EACH
def test_mixed_precision_measures_in_float32(name, small_batch) -> None:
    pyramid, batch = small_batch((3, 1))
    head = build(name)
    exact = head(pyramid, batch).losses
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = head(pyramid, batch).losses
        found = head.predict(pyramid, batch.images)
    for key, term in rough.items():
        assert term.value.dtype == torch.float32
        torch.testing.assert_close(term.value, exact[key].value, rtol=0.05, atol=0.05)
    assert all(one.boxes_xyxy_px.dtype == torch.float32 for one in found)


@EACH
def test_starts_with_rare_objects(name) -> None:
    head = build(name)
    bias = head.cls.bias.sigmoid()
    torch.testing.assert_close(bias, torch.full_like(bias, 0.01))
    if name != "retinanet":
        assert [scale.item() for scale in head.scales] == [1.0] * 3


@EACH
def test_detections_lie_in_the_image_best_first(name, small_batch) -> None:
    pyramid, batch = small_batch((1, 1))
    head = build(name)
    nn.init.normal_(head.cls.weight, std=0.5)
    nn.init.normal_(head.reg.weight, std=0.1)
    with torch.no_grad():
        found: tuple[Detections, ...] = head.predict(pyramid, batch.images)
    for one, (height, width) in zip(found, batch.images.sizes.tolist(), strict=True):
        assert 0 < len(one) <= 100
        assert one.scores.diff().le(0).all()
        assert one.boxes_xyxy_px.min() >= 0
        assert one.boxes_xyxy_px[:, 2].max() <= width + 1e-3  # means are rounded
        assert one.boxes_xyxy_px[:, 3].max() <= height + 1e-3


@EACH
def test_nothing_above_the_threshold_is_no_detection(name, small_batch) -> None:
    pyramid, batch = small_batch((1, 1))
    head = build(name)
    nn.init.constant_(head.cls.bias, -200)
    with torch.no_grad():
        assert [len(one) for one in head.predict(pyramid, batch.images)] == [0, 0]


@EACH
def test_normalisers_are_averaged_over_processes_where_the_official_ones_are(
    name, small_batch, monkeypatch
) -> None:
    """Two processes of which the other one has seven times as many positives."""
    pyramid, batch = small_batch((3, 2))
    head = build(name)
    nn.init.zeros_(head.cls.bias)  # so that no sum of scores is below the least divisor
    alone = divided(head(pyramid, batch).losses)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: total.mul_(8))
    factor = 1 if name in ("retinanet", "paa") else 4
    for key, term in divided(head(pyramid, batch).losses).items():
        torch.testing.assert_close(term.value * factor, alone[key].value)


def test_drawn_candidates_hold_all_positives() -> None:
    positive = torch.zeros(500, dtype=torch.bool)
    positive[torch.tensor([3, 77, 400])] = True
    drawn = positives_first(positive, 20)
    assert set(drawn[:3].tolist()) == {3, 77, 400}
    assert len(set(drawn.tolist())) == 20
    assert set(positives_first(positive, 2).tolist()) < {3, 77, 400}
    assert sorted(positives_first(positive, 1000).tolist()) == list(range(500))


@EACH
def test_a_head_learns_two_images(name, small_batch) -> None:
    pyramid, batch = small_batch((3, 2))
    pyramid = pyramid.map(lambda value: value.detach())
    head = build(name)
    optimiser = torch.optim.Adam(head.parameters(), lr=1e-3)
    totals = []
    for _ in range(12):
        optimiser.zero_grad()
        totals.append(run(head, pyramid, batch))
        optimiser.step()
    assert totals[-1] < 0.9 * totals[0]
