"""What logits mean travels with them, from the head to losses and detections."""

from dataclasses import replace

import pytest
import torch
from scoring import losses_of
from torch.testing import assert_close

from codetr.classification import Sigmoid, Softmax
from codetr.errors import UserError
from codetr.evaluation import Postprocess
from codetr.models.detectors.grouping import split
from codetr.models.heads import DetectionHead, TiedDetectionHead
from codetr.structures import ImageInfo, Predictions, Queries, QueryGroup, Targets
from codetr.supervision.assigners import HungarianMatcher
from codetr.supervision.criteria import (
    FederatedClassification,
    FocalClassification,
    QualityClassification,
    SetCriterion,
    class_losses,
)
from codetr.supervision.schemes.group import _side_by_side

K = 3


def test_a_sigmoid_has_a_logit_per_class_and_a_softmax_one_more() -> None:
    logits = torch.randn(2, 5, 4)
    assert (Sigmoid().width(K), Softmax(K).width(K)) == (K, K + 1)
    assert (Sigmoid().num_classes(logits), Softmax(K).num_classes(logits)) == (4, K)
    assert_close(Sigmoid().scores(logits), 1 / (1 + (-logits).exp()))
    expected = logits.exp()[..., :K] / logits.exp().sum(-1, keepdim=True)
    assert_close(Softmax(K).scores(logits), expected)
    with pytest.raises(UserError, match="background at index 5, not 3"):
        Softmax(K).width(5)


@pytest.mark.parametrize("kind", [DetectionHead, TiedDetectionHead])
def test_predictions_of_a_softmax_head_say_so_wherever_they_go(kind: type[DetectionHead]) -> None:
    head = kind(K, 8, num_layers=2, classification=Softmax(K))
    hidden, anchors = torch.randn(2, 5, 8), torch.rand(2, 5, 4)
    found = head.layer(1)(hidden, anchors)
    proposals = head.proposals.raw(hidden, anchors).predictions()
    group = QueryGroup(name="main", queries=Queries(content=hidden, anchors=anchors))
    cut = split([group], [found], {})["main"].layers[0]
    for one in (found, proposals, cut, _side_by_side([found, found]), found.to(torch.float64)):
        assert one.classification == Softmax(K)
        assert one.logits.shape[-1] == K + 1
        assert one.num_classes == K
        assert one.scores().shape[-1] == K


def test_a_softmax_detects_one_object_per_query_and_never_background() -> None:
    logits = torch.tensor([[[0.0, 2.0, 1.0, 9.0], [4.0, 0.0, 0.0, 1.0]]])
    found = Predictions(logits=logits, boxes=torch.rand(1, 2, 4), classification=Softmax(K))
    info = ImageInfo(image_id=1, original_size=(10, 10), scale=(1.0, 1.0))
    (image,) = Postprocess(6)(found, torch.tensor([[10, 10]]), (info,))
    assert image.labels.tolist() == [0, 1]
    assert_close(
        image.scores, torch.stack([logits[0, 1].softmax(0)[0], logits[0, 0].softmax(0)[1]])
    )
    again = replace(found, logits=logits[..., :K], classification=Sigmoid())
    assert len(Postprocess(6)(again, torch.tensor([[10, 10]]), (info,))[0]) == 2 * K


def test_equal_scores_of_a_query_are_one_detection() -> None:
    assert Softmax(K).detection_scores(torch.zeros(1, 2, K + 1)).tolist() == [[[0.25, 0, 0]] * 2]


@pytest.mark.parametrize(
    "loss",
    [
        FocalClassification(),
        QualityClassification(),
        FederatedClassification(FocalClassification(), [1] * K),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_what_is_made_for_sigmoids_refuses_others(loss: class_losses.Classification) -> None:
    found = Predictions(
        logits=torch.zeros(1, 2, K + 1), boxes=torch.rand(1, 2, 4), classification=Softmax(K)
    )
    target = Targets(
        boxes=torch.rand(1, 4),
        labels=torch.tensor([0]),
        weights=torch.ones(1),
        size=torch.tensor([9.0, 9.0]),
    )
    with pytest.raises(AssertionError, match=r"FocalCost.* of Softmax"):
        HungarianMatcher()([found], [target])
    (pairs,) = HungarianMatcher()([Predictions(logits=found.logits, boxes=found.boxes)], [target])
    with pytest.raises(AssertionError, match="Softmax"):
        losses_of(SetCriterion(loss), found, [target], pairs, torch.tensor(1.0))
