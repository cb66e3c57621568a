import numpy as np
import pytest
import torch
from torch.testing import assert_close

from codetr.errors import UserError
from codetr.evaluation import SoftNms


@pytest.fixture(scope="module")
def golden(shared):
    with np.load(shared / "golden" / "soft_nms" / "io.npz") as file:
        return dict(file)


@pytest.mark.golden
@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_equals_the_official_code(golden, case):
    boxes, scores, labels = (
        torch.from_numpy(golden[f"{case}/{key}"]) for key in ("boxes", "scores", "labels")
    )
    keep, decayed = SoftNms(0.8, 1e-3)(boxes.double(), scores.double(), labels)
    expected = torch.from_numpy(golden[f"{case}/dets"])
    assert torch.equal(keep, torch.from_numpy(golden[f"{case}/keep"]).long())
    assert_close(decayed, expected[:, 4].double(), atol=1e-6, rtol=0)
    assert_close(boxes[keep].double(), expected[:, :4].double(), atol=1e-6, rtol=0)

    keep32, decayed32 = SoftNms(0.8, 1e-3)(boxes, scores, labels)
    assert decayed32.dtype == torch.float32
    assert torch.equal(keep32, keep)
    official = torch.from_numpy(golden[f"{case}/scores_float32"])
    assert_close(decayed32, official.float(), atol=1e-4, rtol=0)


def _boxes(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_decays_only_within_a_class_and_sorts_by_the_decayed_score():
    boxes = _boxes([0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10], [50, 50, 60, 60])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.5], dtype=torch.float64)
    keep, decayed = SoftNms()(boxes, scores, torch.tensor([0, 0, 1, 0]))
    assert keep.tolist() == [0, 2, 3, 1]
    assert_close(decayed, torch.tensor([0.9, 0.7, 0.5, 0.08], dtype=torch.float64))


def test_a_box_that_was_decayed_loses_its_turn():
    # 1 overlaps 0 and 2 strongly, 0 and 2 overlap below the threshold: by its original score 1
    # would decay 2, but 0 has decayed it by then.
    boxes = _boxes([0, 0, 10, 100], [1, 0, 11, 100], [2, 0, 12, 100])
    scores = torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64)
    keep, decayed = SoftNms(0.7, 0.1)(boxes, scores, torch.zeros(3, dtype=torch.long))
    assert keep.tolist() == [0, 2]
    assert_close(decayed, torch.tensor([0.9, 0.7], dtype=torch.float64))


def test_the_best_box_stays_whatever_its_score():
    boxes = _boxes([0, 0, 1, 1], [5, 5, 6, 6])
    scores = torch.tensor([1e-5, 1e-4], dtype=torch.float64)
    keep, decayed = SoftNms()(boxes, scores, torch.tensor([0, 1]))
    assert keep.tolist() == [1]
    assert decayed.tolist() == [1e-4]


def test_no_box_and_a_floor_of_zero():
    keep, decayed = SoftNms()(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    assert len(keep) == len(decayed) == 0
    same = torch.tensor([[0.0, 0, 5, 5]]).repeat(3, 1)
    keep, decayed = SoftNms(min_score=0.0)(same, torch.tensor([0.5, 0.9, 0.7]), torch.zeros(3))
    assert keep[0] == 1
    assert_close(decayed, torch.tensor([0.9, 0.0, 0.0]))


@pytest.mark.parametrize("options", [{"iou_threshold": 0.0}, {"min_score": -1.0}])
def test_bad_numbers_are_named(options):
    with pytest.raises(UserError, match=next(iter(options))):
        SoftNms(**options)
