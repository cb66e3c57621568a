import pytest
import torch

from codetr.supervision.criteria import FederatedClassification, FocalClassification

K = 12
COUNTS = [0, 1, 1, 4, 4, 9, 16, 25, 100, 100, 400, 900]


def _loss(num_classes: int = 5) -> FederatedClassification:
    return FederatedClassification(FocalClassification(), COUNTS, num_classes)


def test_loss_is_the_inner_one_on_some_classes_and_zero_elsewhere() -> None:
    logits = torch.randn(2, 7, K)
    labels = torch.full((2, 7), K)
    labels[0, 3], labels[1, 0], labels[1, 5] = 0, 4, 4
    quality = torch.zeros(2, 7)
    inner = FocalClassification()(logits, labels, quality)
    for _ in range(20):
        loss = _loss()(logits, labels, quality)
        used = loss.abs().sum(dim=(0, 1)) > 0
        assert used.sum() == 5
        assert used[0]  # in the batch, although never drawn
        assert used[4]
        assert loss[..., used].equal(inner[..., used])
        assert (loss[..., ~used] == 0).all()


def test_all_present_classes_count_even_if_they_are_too_many() -> None:
    labels = torch.arange(K).view(1, K)
    assert _loss(3).judged(labels, K).all()
    background = torch.full((1, 4), K)
    assert _loss(3).judged(background, K).sum() == 3
    assert _loss(50).judged(background, K).tolist() == [False] + [True] * (K - 1)


def test_classes_are_drawn_by_the_root_of_their_images() -> None:
    background = torch.full((1, 1), K)
    loss, rounds = _loss(1), 6000
    drawn = sum(loss.judged(background, K).double() for _ in range(rounds)) / rounds
    weights = torch.tensor(COUNTS, dtype=torch.float64).sqrt()
    torch.testing.assert_close(drawn, weights / weights.sum(), atol=0.025, rtol=0)


def test_drawing_two_is_without_replacement() -> None:
    """Against the probabilities of successive draws."""
    counts = [1, 4, 9]
    loss = FederatedClassification(FocalClassification(), counts, 2)
    rounds = 6000
    drawn = sum(loss.judged(torch.tensor([[3]]), 3).double() for _ in range(rounds)) / rounds
    p = [1 / 6, 2 / 6, 3 / 6]
    expected = [p[i] + sum(p[j] * p[i] / (1 - p[j]) for j in range(3) if j != i) for i in range(3)]
    torch.testing.assert_close(
        drawn, torch.tensor(expected, dtype=torch.float64), atol=0.03, rtol=0
    )


def test_buffers_are_no_part_of_a_checkpoint() -> None:
    assert not _loss().state_dict()
    with pytest.raises(ValueError, match="num_classes >= 1"):
        _loss(0)


def test_every_layer_has_draws_and_classes_of_its_own() -> None:
    labels = torch.full((40, 2, 3), K)
    labels[0, 1, 2] = 0  # the class that is never drawn
    judged = _loss().judged(labels, K)
    assert judged.shape == (40, K)
    assert (judged.sum(1) == 5).all()
    assert judged[:, 0].tolist() == [True] + [False] * 39
    assert len({tuple(row.tolist()) for row in judged}) > 5
    logits = torch.randn(40, 2, 3, K)
    loss = _loss()(logits, labels, torch.zeros(40, 2, 3))
    assert ((loss.abs().sum(dim=(1, 2)) > 0).sum(1) == 5).all()
