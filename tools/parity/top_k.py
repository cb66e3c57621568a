"""Compare MS-DETR's one-to-many matcher on its own, on recorded synthetic images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from codetr.structures import Predictions, Targets
from codetr.supervision.assigners import TopKAssigner
from tools.parity.recorded import read_arrays
from tools.parity.rules import Array
from tools.parity.table import Row, Tolerance, Tolerances, compare, compare_all

FILE = "o2m_matcher_cases.npz"
TOLERANCES = Tolerances(arrays=Tolerance(absolute=1e-6))


def check_matcher(folder: Path, assigner: TopKAssigner) -> list[Row]:
    """Quality, votes and pairs of every case. If more queries are positive than may vote, the
    choice is random and only the bound on pairs per target is checked.
    """
    arrays, rows = read_arrays(folder / FILE), []
    for case in sorted({name.split("/")[0] for name in arrays}):
        own = {k.removeprefix(f"{case}/"): v for k, v in arrays.items() if k.startswith(f"{case}/")}
        place = f"{FILE.removesuffix('.npz')}/{case}/"
        rows += [replace(r, quantity=place + r.quantity) for r in _rows(own, assigner)]
    return rows


def _rows(case: dict[str, Array], assigner: TopKAssigner) -> list[Row]:
    boxes, logits = (
        torch.from_numpy(case[f"pred_{name}"]).double() for name in ("boxes", "logits")
    )
    targets = Targets(
        boxes=torch.from_numpy(case["gt_boxes"]).double(),
        labels=torch.from_numpy(case["gt_labels"]),
        weights=torch.ones(len(case["gt_labels"]), dtype=torch.float64),
        size=torch.ones(2, dtype=torch.float64) * 1000,
    )
    values = {"quality": assigner.quality(logits, boxes, targets)}
    if len(targets):
        values["best_gt"], values["positive"] = assigner.votes(values["quality"])
    (pairs,) = assigner([Predictions(logits=logits[None], boxes=boxes[None])], [targets])
    if int(case["positive"].sum()) <= int(assigner.share * len(boxes)):
        values |= {"pair_query": pairs.query, "pair_gt": pairs.target}
        return [*compare_all(values, case, TOLERANCES)]
    most = torch.bincount(pairs.target, minlength=len(targets)).max()
    bound = compare("pairs per target over the bound", (most - assigner.k).clamp(min=0), 0)
    return [*compare_all(values, case, TOLERANCES), bound]
