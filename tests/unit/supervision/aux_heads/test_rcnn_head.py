"""RPN and region head on batches with few or no boxes."""

import pytest
import torch

from codetr.loss_terms import total_loss
from codetr.supervision.assigners.sampling import RandomSampler
from codetr.supervision.aux_heads.anchors import DeltaCoder
from codetr.supervision.aux_heads.rcnn import RcnnHead
from codetr.supervision.aux_heads.roi_heads import SharedFcBoxHead
from codetr.supervision.aux_heads.rpn import Rpn


def small_head(**parts) -> RcnnHead:
    return RcnnHead(
        num_classes=5,
        channels=32,
        num_levels=3,
        rpn=Rpn(channels=32, sampler=RandomSampler(size=32, positive_share=0.5)),
        sampler=RandomSampler(size=24, positive_share=0.25),
        **{"box_head": SharedFcBoxHead(num_classes=5, channels=32, fc_dim=16)} | parts,
    )


@pytest.mark.parametrize("counts", [(3, 1), (0, 2), (0, 0)])
def test_every_parameter_gets_a_gradient(small_batch, counts) -> None:
    pyramid, batch = small_batch(counts)
    head = small_head()
    output = head(pyramid, batch)
    total_loss(output.losses).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert all(features.grad is not None for features in pyramid.maps)
    if sum(counts) == 0:
        assert output.losses["rpn_bbox"].value == 0
        assert output.losses["bbox"].value == 0
    for found, count in zip(output.candidates, counts, strict=True):
        positive = found.labels < 5
        assert bool(positive.any()) == (count > 0)
        assert not found.targets[~positive].any()
        assert found.features.requires_grad
        assert not found.boxes.requires_grad


def test_no_region_at_all_still_reaches_every_parameter(small_batch) -> None:
    """With no boxes and no proposals (all clipped away) the second stage sees nothing."""
    pyramid, batch = small_batch((0, 0))
    head = small_head()
    nothing = [torch.zeros(0, 4), torch.zeros(0, 4)]
    regions = head.sample(nothing, batch.targets)
    assert [len(r) for r in regions] == [0, 0]
    losses = head.losses(
        *head.classify(head.pool(pyramid, [r.boxes for r in regions])), regions, batch.targets
    )
    total_loss(losses).backward()
    for name, parameter in head.box_head.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name
    assert [len(found) for found in head.detect(pyramid, batch.images, nothing)] == [0, 0]


def test_candidates_are_as_many_as_the_smallest_image_has(small_batch, monkeypatch) -> None:
    pyramid, batch = small_batch((3, 2))
    head = small_head()
    whole = head.sample
    monkeypatch.setattr(
        head, "sample", lambda boxes, targets: whole([boxes[0], boxes[1][:4]], targets)
    )
    output = head(pyramid, batch)
    assert [len(found) for found in output.candidates] == [6, 6]


def test_one_regression_for_all_classes_equals_equal_ones_per_class(small_batch) -> None:
    pyramid, batch = small_batch((3, 2))

    class Agnostic(SharedFcBoxHead):
        def forward(self, features):
            logits, deltas = super().forward(features)
            return logits, deltas[:, :1]

    class Repeated(SharedFcBoxHead):
        def forward(self, features):
            logits, deltas = super().forward(features)
            return logits, deltas[:, :1].expand(-1, 5, -1)

    parts = [kind(num_classes=5, channels=32, fc_dim=16) for kind in (Agnostic, Repeated)]
    parts[1].load_state_dict(parts[0].state_dict())
    shared_rpn = Rpn(channels=32)
    values, found = [], []
    for part in parts:
        head = RcnnHead(num_classes=5, channels=32, num_levels=3, rpn=shared_rpn, box_head=part)
        torch.manual_seed(1)
        values.append(total_loss(head(pyramid, batch).losses))
        with torch.no_grad():
            found.append(head.predict(pyramid, batch.images)[0])
    torch.testing.assert_close(*values)
    torch.testing.assert_close(found[0].boxes_xyxy_px, found[1].boxes_xyxy_px)


def test_mixed_precision_measures_in_float32(small_batch) -> None:
    pyramid, batch = small_batch((3, 1))
    head = small_head()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = head(pyramid, batch)
        detections = head.predict(pyramid, batch.images)
    total_loss(output.losses).backward()
    for term in output.losses.values():
        assert term.value.dtype == torch.float32
        assert term.value.isfinite()
    assert all(found.boxes_xyxy_px.dtype == torch.float32 for found in detections)


def test_detections_lie_in_the_image(small_batch) -> None:
    pyramid, batch = small_batch((1, 1))
    head = small_head(coder=DeltaCoder(stds=(1, 1, 1, 1)))
    torch.nn.init.normal_(head.box_head.reg.weight)
    with torch.no_grad():
        found = head.predict(pyramid, batch.images)
    for one, (height, width) in zip(found, batch.images.sizes.tolist(), strict=True):
        assert len(one) == 100
        assert one.scores.diff().le(0).all()
        assert one.boxes_xyxy_px.min() >= 0
        assert one.boxes_xyxy_px[:, 2].max() <= width
        assert one.boxes_xyxy_px[:, 3].max() <= height


def test_a_single_level_is_refused() -> None:
    with pytest.raises(ValueError, match="2 or more levels"):
        RcnnHead(num_classes=5, channels=32, num_levels=1)
