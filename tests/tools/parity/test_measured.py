"""Official names of losses, and what is logged beside them."""

import pytest
import torch

from codetr.structures import Assignment, Predictions, Targets
from tools.parity.measured import detr_loss, layered, logged

LAYERS = 3


def target(labels: list[int]) -> Targets:
    count = len(labels)
    return Targets(
        boxes=torch.full((count, 4), 0.5),
        labels=torch.tensor(labels, dtype=torch.int64),
        weights=torch.ones(count),
        size=torch.ones(2),
    )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("one_to_one/layer2/cls", "loss_ce"),
        ("one_to_one/layer0/bbox", "loss_bbox_0"),
        ("one_to_one/encoder/giou", "loss_giou_enc"),
        ("mixed/layer1/cls", "loss_ce_1_o2m"),
        ("hybrid/layer2/cls", "loss_ce_one2many"),
        ("teacher/0/layer1/giou", "loss_giou_1_ensemble"),
        ("teacher/0/encoder/cls", "loss_ce_enc_ensemble"),
        ("denoising/layer0/cls", "loss_ce_dn_0"),
        ("query_denoising/layer2/bbox", "tgt_loss_bbox"),
    ],
)
def test_losses_have_their_official_names(ours: str, theirs: str) -> None:
    assert detr_loss(ours, LAYERS) == theirs


def test_the_encoder_has_the_suffix_of_its_code() -> None:
    assert detr_loss("one_to_one/encoder/cls", LAYERS, "_interm") == "loss_ce_interm"


def measured(targets: list[Targets], pairs: list[list[int]]) -> list:
    """One layer of two images with two queries of three classes each, all sure of class 1."""
    logits = torch.tensor([0.0, 1.0, 0.0]).expand(2, 2, 3)
    layer = Predictions(logits=logits, boxes=torch.full((2, 2, 4), 0.25))
    image, query, target_index = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 3).T
    own = Assignment(image=image, query=query, target=target_index)
    return list(layered("one_to_one", [layer], [own], targets))


def test_errors_and_halves_of_the_distance_are_those_of_the_pairs() -> None:
    found = measured([target([1]), target([1, 2])], [[0, 1, 0], [1, 0, 2], [1, 1, 1]])
    values = dict(logged(found))
    assert values["class_error"] == pytest.approx(100 / 3)
    assert values["cardinality_error"] == 0.5
    assert values["loss_xy"] == values["loss_hw"] == pytest.approx(0.5)
    (one,) = found
    assert {"match_l0", "match_o2o_l0", "match_one2one_l0", "match"} == set(one.matches)
    assert one.pairs_by_image().tolist() == [[0, 1, 0], [1, 0, 1], [1, 1, 0]]


def test_copies_of_a_target_have_its_number() -> None:
    """Two targets, then one, each list three times."""
    targets = [target([1, 2] * 3), target([1] * 3)]
    logits = torch.zeros(2, 2, 3)
    layer = Predictions(logits=logits, boxes=torch.full((2, 2, 4), 0.25))
    own = Assignment(
        image=torch.tensor([0, 0, 1]), query=torch.tensor([0, 1, 1]), target=torch.tensor([4, 3, 8])
    )
    (one,) = layered("hybrid", [layer], [own], targets, repeats=3)
    assert one.pairs_by_image().tolist() == [[0, 0, 4], [0, 1, 3], [1, 1, 2]]
    found = one.without_copies(one.pairs_by_image())
    assert found.tolist() == [[0, 0, 0], [0, 1, 1], [1, 1, 0]]
    (plain,) = layered("hybrid", [layer], [own], targets)
    assert torch.equal(plain.without_copies(plain.pairs_by_image()), plain.pairs_by_image())


def test_without_pairs_every_class_counts_as_wrong_as_officially() -> None:
    values = dict(logged(measured([target([]), target([])], [])))
    assert values["class_error"] == 100
    assert values["loss_xy"] == 0
