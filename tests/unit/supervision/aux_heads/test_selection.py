"""PAA's choice of boxes against loops over boxes."""

import math

import pytest
import torch
from torchvision.ops import batched_nms

from codetr.nms import ClasswiseNms
from codetr.supervision.aux_heads.selection import VotedSelection

SELECTION = VotedSelection(nms=ClasswiseNms(iou=0.6, limit=10), per_level=30, threshold=0.3)


def iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union else 0.0


def random_case(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    low = torch.rand(60, 2, dtype=torch.float64) * 30
    boxes = torch.cat([low, low + 20 + torch.rand(60, 2, dtype=torch.float64) * 20], dim=1)
    scores = torch.rand(60, 3, dtype=torch.float64)
    return scores, boxes, torch.rand(60, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(3))
def test_voting_equals_loops(seed) -> None:
    scores, boxes, quality = random_case(seed)
    found = SELECTION(scores, boxes, (40, 20), quality)

    root = (scores * quality[:, None]).sqrt()
    first = sorted(range(40), key=lambda a: -max(root[a].tolist()))[:30]
    pairs = [
        (a, k) for a in [*first, *range(40, 60)] for k in range(3) if root[a, k] > 0.3
    ]  # fmt: skip
    rows, columns = (torch.tensor(part) for part in zip(*pairs, strict=True))
    kept = batched_nms(boxes[rows], root[rows, columns], columns, 0.6)[:10].tolist()
    assert len(found) == len(kept) == 10
    for number, index in enumerate(kept):
        anchor, label = pairs[index]
        own, total, mean = boxes[anchor].tolist(), 0.0, [0.0] * 4
        for other, kind in pairs:
            overlap = iou(own, boxes[other].tolist())
            if kind == label and overlap > 0.01:
                weight = math.exp(-((1 - overlap) ** 2) / 0.025) * root[other, kind].item()
                total += weight
                mean = [m + weight * c for m, c in zip(mean, boxes[other].tolist(), strict=True)]
        assert found.labels[number] == label
        assert found.scores[number] == root[anchor, label]
        expected = torch.tensor(mean, dtype=torch.float64) / total
        torch.testing.assert_close(found.boxes_xyxy_px[number], expected)


def test_a_box_without_area_stays() -> None:
    boxes = torch.tensor([[5.0, 5, 5, 9], [0, 0, 10, 10]])
    found = SELECTION(torch.tensor([[0.9], [0.8]]), boxes, (2,))
    assert torch.equal(found.boxes_xyxy_px, boxes)
