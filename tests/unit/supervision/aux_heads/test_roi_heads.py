"""Region heads: their layers by hand, and the second stage with one regression for all classes."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from codetr.loss_terms import total_loss
from codetr.supervision.assigners.sampling import RandomSampler
from codetr.supervision.aux_heads.anchors import DeltaCoder
from codetr.supervision.aux_heads.matched import Matched
from codetr.supervision.aux_heads.rcnn import RcnnHead, Regions
from codetr.supervision.aux_heads.roi_heads import ConvFcBoxHead, SharedFcBoxHead
from codetr.supervision.aux_heads.rpn import ProposalSelection, Rpn

STDS = (0.05, 0.05, 0.1, 0.1)


def box_head(**changes: int) -> ConvFcBoxHead:
    return ConvFcBoxHead(**{"num_classes": 5, "channels": 32, "fc_dim": 16, **changes})


def test_layers_by_hand() -> None:
    head = box_head(roi_size=3).double()
    state = head.state_dict()
    for value in state.values():
        value.add_(torch.randn_like(value) * 0.1)
    features = torch.randn(6, 32, 3, 3, dtype=torch.float64)
    hidden = features
    for i in range(4):
        hidden = F.conv2d(hidden, state[f"convs.{i}.conv.weight"], padding=1)
        group = hidden.reshape(6, 32, -1)  # 32 groups of one channel
        group = group - group.mean(2, keepdim=True)
        group = group / (group.square().mean(2, keepdim=True) + 1e-5).sqrt()
        gain, shift = (state[f"convs.{i}.norm.{k}"][:, None] for k in ("weight", "bias"))
        hidden = (group * gain + shift).reshape(features.shape).clamp(min=0)
    hidden = (hidden.flatten(1) @ state["fcs.0.weight"].T + state["fcs.0.bias"]).clamp(min=0)
    logits, deltas = head(features)
    assert_close(logits, hidden @ state["cls.weight"].T + state["cls.bias"])
    assert_close(deltas[:, 0], hidden @ state["reg.weight"].T + state["reg.bias"])
    assert (logits.shape, deltas.shape) == ((6, 6), (6, 1, 4))


def test_convolutions_start_as_in_mmdet() -> None:
    head = box_head()
    for block in head.convs:
        assert block.conv.bias is None
        assert block.conv.weight.std().item() == pytest.approx(math.sqrt(2 / (32 * 9)), rel=0.05)
    assert head.reg.weight.std().item() == pytest.approx(0.001, rel=0.3)
    assert head.cls.weight.std().item() == pytest.approx(0.01, rel=0.3)


def rcnn_head(**changes: object) -> RcnnHead:
    parts = {
        "rpn": Rpn(channels=32, sampler=RandomSampler(size=32, positive_share=0.5)),
        "sampler": RandomSampler(size=24, positive_share=0.25),
        "coder": DeltaCoder(stds=STDS),
        "box_head": box_head(),
    }
    return RcnnHead(num_classes=5, channels=32, num_levels=3, **{**parts, **changes})


@pytest.mark.parametrize("counts", [(3, 1), (0, 2), (0, 0)])
def test_every_parameter_gets_a_finite_gradient(small_batch, counts) -> None:
    pyramid, batch = small_batch(counts)
    head = rcnn_head()
    total_loss(head(pyramid, batch).losses).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_no_region_at_all_still_reaches_every_parameter(small_batch) -> None:
    pyramid, batch = small_batch((0, 0))
    head = rcnn_head()
    nothing = [torch.zeros(0, 4), torch.zeros(0, 4)]
    regions = head.sample(nothing, batch.targets)
    losses = head.losses(
        *head.classify(head.pool(pyramid, [r.boxes for r in regions])), regions, batch.targets
    )
    total_loss(losses).backward()
    for name, parameter in head.box_head.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name
    assert [len(found) for found in head.detect(pyramid, batch.images, nothing)] == [0, 0]


def test_box_loss_is_giou_of_boxes_decoded_with_the_heads_stds(small_batch) -> None:
    """Offsets that lead from each region to its true box leave no loss, others their GIoU."""
    _, batch = small_batch((3, 2), torch.float64)
    head = rcnn_head()
    regions, deltas, giou = [], [], 0.0
    for target in batch.targets:
        centre, size = (target.boxes * target.size_whwh).split(2, dim=1)
        boxes = torch.cat([centre - 0.6 * size, centre + 0.4 * size], dim=1)
        regions.append(
            Regions(
                boxes=boxes,
                matched=Matched(labels=target.labels, boxes=target.boxes),
                target=torch.arange(len(boxes)),
            )
        )
        # The region's centre lies 0.1 of its side before the true one, and the sides agree.
        deltas.append(torch.tensor([0.1 / 0.05, 0.1 / 0.05, 0, 0]).double().expand(len(boxes), 4))
        giou += len(boxes) * (0.81 / 1.19 - (1.21 - 1.19) / 1.21)
    logits = torch.zeros(5, 6, dtype=torch.float64)
    exact = head.losses(logits, torch.cat(deltas)[:, None], tuple(regions), batch.targets)
    assert exact["bbox"].value.item() == pytest.approx(0, abs=1e-6)
    shifted = torch.zeros(5, 1, 4, dtype=torch.float64)
    plain = head.losses(logits, shifted, tuple(regions), batch.targets)
    assert plain["bbox"].value.item() == pytest.approx(1 - giou / 5, rel=1e-5)
    assert plain["cls"].value.item() == pytest.approx(math.log(6), rel=1e-5)


def test_boxes_of_all_classes_are_the_same_refined_region(small_batch) -> None:
    pyramid, batch = small_batch((2,))
    head = rcnn_head(nms=lambda found: found)
    torch.nn.init.normal_(head.box_head.reg.weight, std=0.1)
    region = torch.tensor([[20.0, 30.0, 60.0, 70.0]])
    with torch.no_grad():
        (found,) = head.detect(pyramid, batch.images, [region])
        _, deltas = head.box_head(head.pool(pyramid, [region]))
    dx, dy, dw, dh = (deltas[0, 0] * torch.tensor(STDS)).tolist()
    half = 20 * torch.tensor([math.exp(dw), math.exp(dh)])
    centre = torch.tensor([40 + 40 * dx, 50 + 40 * dy])
    assert found.labels.sort().values.tolist() == [0, 1, 2, 3, 4]
    assert_close(found.boxes_xyxy_px, torch.cat([centre - half, centre + half]).expand(5, 4))


def test_inference_looks_at_as_many_proposals_as_it_is_told(small_batch) -> None:
    pyramid, batch = small_batch((2, 1))
    many = ProposalSelection(per_level=8000, limit=2000, iou=0.9)
    head = rcnn_head(rpn=Rpn(channels=32, inference_selection=many))
    torch.nn.init.normal_(head.rpn.reg.weight, std=0.1)
    seen = []
    head.box_head.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    with torch.no_grad():
        first = head.rpn(pyramid, batch.images)
        found = head.rpn.proposals(first, batch.images.sizes, many)
        head.predict(pyramid, batch.images)
    assert seen == [sum(len(p.boxes) for p in found)]
    assert 1000 < len(found[0].boxes) <= 2000


def test_shared_layers_can_be_none() -> None:
    head = SharedFcBoxHead(num_classes=5, channels=2, fc_dim=16, num_fcs=0, roi_size=3)
    logits, deltas = head(torch.randn(2, 2, 3, 3))
    assert (logits.shape, deltas.shape) == ((2, 6), (2, 5, 4))
