import pytest
import torch
from torch import nn
from torch.testing import assert_close

from codetr.boxes import logit
from codetr.models.heads import DetectionHead


@pytest.mark.parametrize("two_stage", [True, False])
def test_one_pair_of_embeddings_per_layer_and_nothing_shared(two_stage: bool) -> None:
    head = DetectionHead(num_classes=5, dim=8, num_layers=3, two_stage=two_stage)
    count = 3 + two_stage
    assert len(head.classify) == len(head.regress) == count
    assert (head.num_classes, head.num_layers) == (5, 3)
    pointers = [p.data_ptr() for p in head.parameters()]
    assert len(set(pointers)) == len(pointers) == count * (2 + 6)
    answers = [head.layer(i) for i in range(3)] + ([head.proposals] if two_stage else [])
    assert [pair.classify for pair in answers] == list(head.classify)
    assert [pair.regress for pair in answers] == list(head.regress)


def test_boxes_start_from_anchors_or_from_points_and_are_always_relative() -> None:
    pair = trained().layer(1)
    hidden, anchors = torch.randn(2, 7, 8), torch.rand(2, 7, 4)
    offsets = pair.regress(hidden)
    found = pair(hidden, anchors, eps=1e-3)
    assert_close(found.boxes, (offsets + logit(anchors, 1e-3)).sigmoid())
    assert_close(found.logits, pair.classify(hidden))
    points = pair(hidden, anchors[..., :2]).boxes
    assert_close(points[..., :2], (offsets[..., :2] + logit(anchors[..., :2], 1e-5)).sigmoid())
    assert_close(points[..., 2:], offsets[..., 2:].sigmoid())


def test_raw_predictions_have_box_logits() -> None:
    pair = trained().proposals
    hidden, grid = torch.randn(2, 7, 8), torch.randn(2, 7, 4)
    raw = pair.raw(hidden, grid)
    assert_close(raw.box_logits, pair.regress(hidden) + grid)
    boxes = raw.predictions()
    assert_close(boxes.boxes, pair(hidden, grid.sigmoid()).boxes)
    assert_close(boxes.logits, raw.logits)


def trained() -> DetectionHead:
    head = DetectionHead(num_classes=5, dim=8, num_layers=2)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    return head


def test_starts_at_prior_probability_and_at_the_anchors() -> None:
    head = DetectionHead(num_classes=5, dim=8, num_layers=2)
    for classify, regress in zip(head.classify, head.regress, strict=True):
        assert_close(classify.bias.sigmoid(), torch.full((5,), 0.01))
        assert not regress(torch.randn(4, 8)).any()
        assert isinstance(regress[-1], nn.Linear)
        assert regress[0].weight.any()
