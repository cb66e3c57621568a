"""Boxes of teacher detectors as further supervision (Teach-DETR, arXiv 2211.11953)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from codetr.errors import UserError
from codetr.loss_terms import Losses, prefixed, scaled
from codetr.models.detectors.protocol import MAIN
from codetr.structures import Batch, Decoded, Predictions, Targets
from codetr.supervision.assigners import HungarianMatcher
from codetr.supervision.criteria import SetCriterion, matched_pairs, supervised
from codetr.supervision.schemes.one_to_one import ProposalLabels, proposal_targets
from codetr.supervision.schemes.protocol import Scheme
from codetr.supervision.schemes.scoring import Score, matched, measured


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """What is matched with the boxes of a teacher: ``layers``, with the ``names`` of their losses;
    ``num_pairs`` and ``background`` are those of ``supervised``.
    """

    names: Sequence[str]
    layers: Sequence[Predictions]
    targets: Sequence[Targets]
    num_pairs: float
    background: float = 1.0


class Teacher(Scheme):
    """The main queries, matched with each teacher's boxes by themselves.

    A matched query's losses are weighted by the score of its box. The encoder's proposals are
    measured with all boxes alike. Teachers are separate (``batch.teachers``), or were merged into
    one when the data was read (``codetr.data.teachers``).

    Args:
        matcher: does not use the scores.
        criterion: as for the ground truth. Its GIoU loss is score * (1 - GIoU); the official code
            has 1 - score * GIoU, which differs by a constant.
        proposal_labels: see ``OneToOne``.
        background: weight of the class loss of queries without a teacher's box.
        weight: of each teacher's losses.

    Raises UserError for a negative weight.
    """

    def __init__(
        self,
        matcher: HungarianMatcher,
        criterion: SetCriterion,
        proposal_labels: ProposalLabels = "classes",
        background: float = 0.5,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        if min(background, weight) < 0:
            raise UserError(
                f"scheme.teacher has background={background}, weight={weight}: give 0 or more"
            )
        self.matcher, self.criterion = matcher, criterion
        self.proposal_labels: ProposalLabels = proposal_labels
        self.background, self.weight = background, weight

    def score(self, decoded: Mapping[str, Decoded], batch: Batch) -> Score:
        """``{teacher}/layer{i}/...`` and ``{teacher}/encoder/...``, teachers counted from 0.

        Raises UserError if the batch has no teachers.
        """
        if not batch.teachers:
            raise UserError("scheme=teacher without teachers: give data.teachers=[FILE.json,...]")
        problems = list(self._problems(decoded[MAIN], batch))
        assignments = yield from matched(
            *(self.matcher.tables(problem.layers, problem.targets) for problem in problems)
        )
        groups = [
            supervised(
                self.criterion, one.layers, one.targets, pairs, one.background, one.num_pairs
            )
            for one, pairs in zip(problems, assignments, strict=True)
        ]
        found = yield from measured(*groups)
        losses: Losses = {}
        for problem, layers in zip(problems, found, strict=True):
            for name, own in zip(problem.names, layers, strict=True):
                losses |= prefixed(name, scaled(self.weight, own))
        return losses

    def _problems(self, main: Decoded, batch: Batch) -> Iterator[_Problem]:
        """For every teacher, the decoder's layers, and the encoder's proposals if any."""
        for number, targets in enumerate(batch.teachers):
            pairs = partial(matched_pairs, batch, teacher=number)
            yield _Problem(
                names=[f"{number}/layer{i}" for i in range(len(main.layers))],
                layers=main.layers,
                targets=targets,
                num_pairs=pairs(main.layers[0].boxes.shape[1]),
                background=self.background,
            )
            if main.proposals is not None:
                alike = [replace(t, weights=torch.ones_like(t.weights)) for t in targets]
                yield _Problem(
                    names=[f"{number}/encoder"],
                    layers=[main.proposals],
                    targets=proposal_targets(alike, self.proposal_labels),
                    num_pairs=pairs(main.proposals.boxes.shape[1]),
                )
