"""MS-DETR's one-to-many matcher alone, on recorded made-up images."""

from __future__ import annotations

from pathlib import Path

import torch

from codetr.structures import Predictions, Targets
from codetr.supervision.assigners import TopKAssigner
from tools.parity.recorded import read_arrays
from tools.parity.table import Row, Tolerance, compare

FILE = "o2m_matcher_cases.npz"
QUALITY = Tolerance(absolute=1e-6)


def check_matcher(folder: Path, assigner: TopKAssigner) -> list[Row]:
    """Quality, votes and pairs of every case. Where more queries are positive than may vote, the
    choice is random: there the number of pairs per target is compared with its bound alone.
    """
    arrays, rows = read_arrays(folder / FILE), []
    for case in sorted({name.split("/")[0] for name in arrays}):
        own = {
            name.split("/")[1]: torch.from_numpy(value)
            for name, value in arrays.items()
            if name.startswith(f"{case}/")
        }
        rows += [
            Row(**{**vars(row), "quantity": f"{FILE.removesuffix('.npz')}/{case}/{row.quantity}"})
            for row in _rows(own, assigner)
        ]
    return rows


def _rows(case: dict[str, torch.Tensor], assigner: TopKAssigner) -> list[Row]:
    boxes, logits = case["pred_boxes"].double(), case["pred_logits"].double()
    count = len(case["gt_labels"])
    targets = Targets(
        boxes=case["gt_boxes"].double(),
        labels=case["gt_labels"],
        weights=torch.ones(count, dtype=torch.float64),
        size=torch.ones(2, dtype=torch.float64) * 1000,
    )
    quality = assigner.quality(logits, boxes, targets)
    rows = [compare("quality", quality, case["quality"], QUALITY)]
    if count:
        best, positive = assigner.votes(quality)
        rows += [
            compare("best_gt", best, case["best_gt"]),
            compare("positive", positive, case["positive"]),
        ]
    (pairs,) = assigner([Predictions(logits=logits[None], boxes=boxes[None])], [targets])
    if int(case["positive"].sum()) > int(assigner.share * len(boxes)):
        most = torch.bincount(pairs.target, minlength=count).max()
        over = (most - assigner.k).clamp(min=0)
        return [*rows, compare("pairs per target over the bound", over, 0)]
    return [
        *rows,
        compare("pair_query", pairs.query, case["pair_query"]),
        compare("pair_gt", pairs.target, case["pair_gt"]),
    ]
