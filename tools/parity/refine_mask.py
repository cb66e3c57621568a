"""Compare the detector's mask branch on its own, on given maps and boxes, with its official
counterpart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
from hydra.utils import instantiate

from codetr.checkpoints.experiment import compose_experiment
from codetr.checkpoints.official import convert_official
from codetr.loss_terms import Losses
from codetr.models.masks import MaskBranch
from codetr.structures import Detections, Memory, Pyramid, Targets
from codetr.supervision.aux_heads.matched import RegionSampler
from codetr.training.branches import in_original
from tools.parity.branch_values import found_masks, samples_of, trained_regions
from tools.parity.co_detr import FLOAT64
from tools.parity.head_inputs import make_pyramid
from tools.parity.heads import step_rows
from tools.parity.inputs import make_batch
from tools.parity.mask_values import original_infos
from tools.parity.recorded import Recorded
from tools.parity.rules import fixed_permutation
from tools.parity.rules_masks import BRANCHES, make_candidates
from tools.parity.step import count_rows
from tools.parity.table import Row
from tools.parity.values import Values, detections, scored

PREFIX = "detector.mask_branch."
LEVELS = 5
"""The encoder's levels, finest first."""


def is_refine_mask(recorded: Recorded) -> bool:
    """Whether the recorded state dict is that of a mask branch."""
    return all(key.startswith(BRANCHES) for key in recorded.shapes)


def check_refine_mask(recorded: Recorded) -> list[Row]:
    """All recorded quantities in float64, with the branch and losses of the experiment."""
    classes = recorded.shapes["mask_iou_head.fc_mask_iou.bias"][0]
    cfg = compose_experiment(recorded.experiment, classes)
    branch = instantiate(cfg.model.detector.mask_branch).double()
    scheme = instantiate(cfg.scheme.masks)
    conversion = convert_official(recorded.state())
    assert not conversion.unused, conversion.unused
    branch.load_state_dict({k.removeprefix(PREFIX): v for k, v in conversion.state.items()})
    batch, found = make_batch(recorded.inputs()), _candidates(recorded, classes)
    pyramid = make_pyramid(recorded.info["seeds"], recorded.info["sizes"], LEVELS)
    factor = scheme.lambda_2 * int(cfg.model.detector.head.num_layers)
    values, losses = _training(branch, scheme, pyramid, batch.targets, found, factor, classes)
    with torch.no_grad():
        infos = original_infos(recorded, batch.infos)
        moved = in_original(found, infos)  # both images in one batch: officially each is one
        seen = found_masks(branch, _memory(pyramid), moved, infos) | detections("det{}", moved)
    values |= {f"eval/{name}": value for name, value in seen.items()}
    for b, one in enumerate(found):
        values[f"in/candidates{b}"] = scored(one.boxes_xyxy_px, one.scores)
        values[f"in/candidates{b}_labels"] = one.labels

    def names(official: str) -> list[str]:
        return [conversion.used[official].removeprefix(PREFIX)]

    return [
        *recorded.input_rows(),
        *recorded.rows(values, FLOAT64),
        *step_rows(recorded, branch, losses, pyramid, names),
        *count_rows(recorded, values),
    ]


def _candidates(recorded: Recorded, classes: int) -> list[Detections]:
    """Stand-ins for the detector's predictions."""
    info, inputs = recorded.info, recorded.inputs()
    found = []
    for image in zip(info["seeds"], inputs.boxes, inputs.labels, info["sizes"], strict=True):
        made, labels = make_candidates(*image, info["num_candidates"], classes)
        boxes, scores = torch.from_numpy(made).double().split([4, 1], dim=1)
        found.append(
            Detections(boxes_xyxy_px=boxes, scores=scores[:, 0], labels=torch.from_numpy(labels))
        )
    return found


def _training(
    branch: MaskBranch,
    scheme: Any,
    pyramid: Pyramid,
    targets: Sequence[Targets],
    found: Sequence[Detections],
    factor: float,
    classes: int,
) -> tuple[Values, Losses]:
    sampled = RegionSampler(assigner=scheme.assigner, sampler=scheme.sampler, num_classes=classes)
    with (
        mock.patch.object(torch, "randperm", fixed_permutation),
        samples_of(scheme.sampler) as samples,
    ):
        regions = sampled([one.boxes_xyxy_px for one in found], targets)
    said, values = trained_regions(branch, pyramid, regions, samples, targets)
    losses = scheme.losses(said, regions, targets, factor)
    return {f"train/{k}" if "/" not in k else k: v for k, v in values.items()}, losses


def _memory(pyramid: Pyramid) -> Memory:
    tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in pyramid.maps], dim=1)
    return Memory(
        tokens=tokens,
        padding=torch.zeros(tokens.shape[:2], dtype=torch.bool),
        shapes=pyramid.shapes,
        strides=pyramid.strides,
        valid_ratios=tokens.new_ones(len(tokens), len(pyramid.maps), 2),
    )
