"""One-to-one assignment of predictions to targets by minimum total cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from codetr.boxes import cxcywh_to_xyxy
from codetr.host_copy import HostCopy
from codetr.structures import Assignment, Predictions, Targets
from codetr.supervision.assigners.class_costs import FOCAL, ClassCost
from codetr.supervision.overlaps import PIXELS, Overlap
from codetr.tensor_struct import TensorStruct

FORBIDDEN = 1e6
"""Cost that stands for a value that is not finite. The loss check reports the cause."""


@dataclass(frozen=True, kw_only=True)
class CostTables(TensorStruct):
    """Costs (L, N, Q) of every target n of a batch with the queries of its own image, for each of
    L layers. ``counts[b]`` of the N targets belong to image b, image after image.
    """

    costs: Tensor
    counts: tuple[int, ...]


class HungarianMatcher(nn.Module):
    """Bipartite matching with class, L1 and GIoU costs (DETR) and their weights.

    ``class_cost`` depends on the kind of logits: ``FocalCost`` (Deformable DETR) or
    ``ProbabilityCost``. L1 is that of relative cxcywh; GIoU is computed by ``overlap``.
    """

    def __init__(
        self,
        cls: float = 2.0,
        l1: float = 5.0,
        giou: float = 2.0,
        class_cost: ClassCost = FOCAL,
        overlap: Overlap = PIXELS,
    ) -> None:
        super().__init__()
        self.cls, self.l1, self.giou = cls, l1, giou
        self.class_cost, self.overlap = class_cost, overlap

    @property
    def reads(self) -> type:
        """The kind of ``codetr.classification`` whose logits it takes."""
        return self.class_cost.reads

    def forward(
        self, layers: Sequence[Predictions], targets: Sequence[Targets]
    ) -> tuple[Assignment, ...]:
        """Match every layer's predictions (B, Q, ...) by itself. One copy leaves the device."""
        (assignments,) = solve([self.tables(layers, targets)])
        return assignments

    @torch.no_grad()
    def tables(self, layers: Sequence[Predictions], targets: Sequence[Targets]) -> CostTables:
        """The costs of every layer's predictions (B, Q, ...) for ``solve``; all layers have the
        same Q. They stay on the device, and the host does not wait for them.
        """
        kind = layers[0].classification
        assert isinstance(kind, self.reads), f"{self.class_cost} of {kind}"
        boxes = torch.stack([layer.boxes for layer in layers])
        logits = torch.stack([layer.logits for layer in layers])
        # Image by image, since the parts of a cost take many times the memory of the cost.
        costs = [self._cost(logits[:, b], boxes[:, b], own) for b, own in enumerate(targets)]
        return CostTables(costs=torch.cat(costs, dim=1), counts=tuple(map(len, targets)))

    def _cost(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
        """Costs (L, N, Q) of one image's predictions (L, Q, K), (L, Q, 4) for its N targets."""
        cls = self.class_cost(logits.to(boxes.dtype), targets.labels)
        wanted, size = targets.boxes.to(boxes.dtype), targets.size_whwh.to(boxes.dtype)
        distance = (boxes[:, None] - wanted[:, None]).abs().sum(-1)
        corners, wanted_corners = cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(wanted)
        overlap = self.overlap(corners[:, None], wanted_corners[:, None], size)
        return self.cls * cls + self.l1 * distance - self.giou * overlap


class Matching:
    """Matching of every problem's layers with one asynchronous copy of all costs to the host, which
    begins here, and one of all assignments back. Work that is queued on the device before the call
    of ``result`` keeps it busy while the host waits and solves.
    """

    def __init__(self, problems: Sequence[CostTables]) -> None:
        self._problems = [(problem.costs.shape, problem.counts) for problem in problems]
        self._device = problems[0].costs.device
        self._costs = HostCopy(torch.cat([problem.costs.flatten() for problem in problems]))

    def result(self) -> list[tuple[Assignment, ...]]:
        """Per problem, an assignment for each of its layers."""
        flat = self._costs.result().numpy()
        flat = np.nan_to_num(flat, nan=FORBIDDEN, posinf=FORBIDDEN, neginf=-FORBIDDEN)
        ends = np.cumsum([shape.numel() for shape, _ in self._problems])[:-1]
        solved = [
            _match(table, counts)
            for (shape, counts), part in zip(self._problems, np.split(flat, ends), strict=True)
            for table in part.reshape(shape)
        ]
        packed = torch.from_numpy(np.concatenate(solved, axis=1))
        packed = packed.to(self._device, torch.int64, non_blocking=True)
        parts: Iterator[Tensor] = iter(packed.split([pairs.shape[1] for pairs in solved], dim=1))
        return [
            tuple(_assignment(next(parts)) for _ in range(shape[0])) for shape, _ in self._problems
        ]


def solve(problems: Sequence[CostTables]) -> list[tuple[Assignment, ...]]:
    """Match all problems, and wait for the result."""
    return Matching(problems).result()


def _match(table: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Image, query and target (3, P) of one layer's pairs, from its costs (N, Q)."""
    found, start = [np.zeros((3, 0), dtype=np.int64)], 0
    for b, count in enumerate(counts):
        query, target = linear_sum_assignment(table[start : start + count].T)
        found.append(np.stack([np.full_like(query, b), query, target + start]))
        start += count
    return np.concatenate(found, axis=1)


def _assignment(pairs: Tensor) -> Assignment:
    return Assignment(image=pairs[0], query=pairs[1], target=pairs[2])
