"""Teach-DETR on H-Deformable-DETR; its losses without teachers are those of H-Deformable-DETR."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from codetr.checkpoints.h_detr import convert_h_detr
from codetr.checkpoints.renaming import Conversion
from codetr.errors import UserError
from codetr.structures import Targets
from codetr.supervision.schemes.hybrid import GROUP as HYBRID
from tools.parity.case import Case
from tools.parity.h_detr import h_family, two_stages
from tools.parity.measured import Measured, layered, matched, matches
from tools.parity.step import Step
from tools.parity.table import Row, Tolerance, compare
from tools.parity.teacher_files import LOADER, check_loader
from tools.parity.values import layers

TEACHER = "teacher"


def _convert(official: Mapping[str, Tensor], cfg: DictConfig) -> Conversion:
    """Raises UserError if the experiment has another number of queries."""
    queries, held = int(cfg.model.num_queries), int(cfg.scheme.hybrid.queries.num_queries)
    number = len(official["query_embed.weight"])
    if number != queries + held:
        raise UserError(
            f"the recorded run has {number} queries, our experiment {queries} + {held}: name the "
            "experiment of the recorded run in info.json"
        )
    return convert_h_detr(official, queries)


def _steps(case: Case) -> Iterator[tuple[str, Case]]:
    """With the recorded teacher boxes, if there are any, then without."""
    arrays = case.recorded.arrays
    if "target_ext_boxes_0" in arrays:
        teachers = tuple(
            Targets(
                boxes=torch.from_numpy(arrays[f"target_ext_boxes_{b}"]).double(),
                labels=torch.from_numpy(arrays[f"target_ext_labels_{b}"]),
                weights=torch.from_numpy(arrays[f"target_ext_scores_{b}"]).double(),
                size=own.size,
            )
            for b, own in enumerate(case.batch.targets)
        )
        yield "with_teacher", replace(case, batch=replace(case.batch, teachers=(teachers,)))
        del case.schemes[TEACHER]
    yield "without_teacher", case


def _values(case: Case, step: Step) -> dict[str, Tensor]:
    """Encoder, selection, and predictions of both groups."""
    return {
        **two_stages(step),
        **layers("one2one_", step.main.layers),
        **layers("one2many_", step.decoded[HYBRID].layers),
    }


def _measured(case: Case, step: Step) -> Iterator[Measured]:
    """Both groups matched with the ground truth, and the main one with the teacher boxes."""
    schemes, main, truth = case.schemes, step.main, case.batch.targets
    yield from matched(
        "one_to_one", schemes["one_to_one"], main, truth, "match_one2one_l{}", "match_one2one_enc"
    )
    yield from _repeated(case, step)
    for boxes in case.batch.teachers:
        yield from matched(
            TEACHER, schemes[TEACHER], main, boxes, "match_teacher_l{}", "match_teacher_enc"
        )


def _repeated(case: Case, step: Step, match: str = "") -> Iterator[Measured]:
    answer = step.decoded[HYBRID]
    targets = answer.group.targets
    pairs = case.schemes["hybrid"].matcher(answer.layers, targets)
    return layered("hybrid", answer.layers, pairs, targets, match)


def _constants(case: Case, step: Step) -> dict[str, float]:
    """The official GIoU loss for a teacher box of score s is 1 - s GIoU, ours is s (1 - GIoU): the
    difference is the mean of 1 - s, which has no gradient.
    """
    return {
        f"{TEACHER}/{number}/layer{i}/giou": float((1 - torch.cat([t.weights for t in own])).mean())
        for number, own in enumerate(case.batch.teachers)
        for i in range(len(step.main.layers))
    }


def _further(case: Case, step: Step) -> Iterator[Row]:
    """The anchors of both groups, the one-to-many pairs (which copy of a target is matched is
    arbitrary, as their costs are equal), and the teacher files.
    """
    recorded = case.recorded
    proposals: Any = step.main.proposals
    best = torch.from_numpy(recorded.arrays["topk_index"]).long()
    theirs = proposals.boxes.gather(1, best[..., None].expand(-1, -1, 4))
    anchors = [step.decoded[group].group.queries.anchors for group in step.decoded]
    joint = torch.cat(anchors, dim=1)
    yield compare("topk_index (anchors of both groups)", joint, theirs, Tolerance(absolute=1e-12))
    counts = torch.tensor([len(t) for t in case.batch.targets])
    for name, ours in matches(_repeated(case, step, "match_one2many_l{}")).items():
        official = torch.from_numpy(recorded.arrays[name]).long()
        yield compare(name, _modulo(ours, counts), _modulo(official, counts))
    if (recorded.folder / LOADER).is_file():
        yield from check_loader(recorded)


def _modulo(pairs: Tensor, counts: Tensor) -> Tensor:
    """(P, 3) image, query and target, the last one modulo the number of the image's targets."""
    return torch.cat([pairs[:, :2], (pairs[:, 2] % counts[pairs[:, 0]])[:, None]], dim=1)


TEACH_DETR = h_family(
    convert=_convert,
    steps=_steps,
    values=_values,
    measured=_measured,
    constants=_constants,
    further=_further,
)
