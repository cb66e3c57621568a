"""The detector's mask branch alone, on given maps and boxes, against its official counterpart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from hydra.utils import instantiate
from torch import Tensor

from codetr.checkpoints.experiment import compose_experiment
from codetr.checkpoints.official import convert_official
from codetr.loss_terms import Losses
from codetr.models.masks import MaskBranch
from codetr.structures import Detections, ImageInfo, Memory, Pyramid, Targets
from codetr.supervision.aux_heads.matched import RegionSampler
from tools.parity.branch_values import found_masks, samples_of, trained_regions
from tools.parity.co_detr import FLOAT64
from tools.parity.head_inputs import make_pyramid
from tools.parity.heads import step_rows
from tools.parity.inputs import make_batch
from tools.parity.recorded import Recorded
from tools.parity.rules import fixed_permutation
from tools.parity.rules_masks import BRANCHES, make_candidates
from tools.parity.step import count_rows
from tools.parity.table import Row
from tools.parity.values import Values, numbered, scored

PREFIX = "detector.mask_branch."
LEVELS = 5
"""Of the encoder, finest first."""


def is_refine_mask(recorded: Recorded) -> bool:
    """Whether the recorded state dict is that of such a branch."""
    return all(key.startswith(BRANCHES) for key in recorded.shapes)


@dataclass(frozen=True, kw_only=True)
class Given:
    """The maps, and per image the objects and what stands for the detector's predictions:
    ``boxes`` (n, 5) px with scores, ``labels`` (n,).
    """

    pyramid: Pyramid
    targets: tuple[Targets, ...]
    boxes: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]


def check_refine_mask(recorded: Recorded) -> list[Row]:
    """Everything recorded, in float64, with the branch and the losses of the experiment."""
    cfg = compose_experiment(recorded.experiment, _num_classes(recorded))
    branch = instantiate(cfg.model.detector.mask_branch).double()
    scheme = instantiate(cfg.scheme.masks)
    conversion = convert_official(recorded.state())
    assert not conversion.unused, conversion.unused
    branch.load_state_dict({k.removeprefix(PREFIX): v for k, v in conversion.state.items()})
    given = _given(recorded)
    factor = scheme.lambda_2 * int(cfg.model.detector.head.num_layers)
    values, losses = _training(recorded, branch, scheme, given, factor)
    with torch.no_grad():
        values |= _evaluation(recorded, branch, given)
    values |= numbered("in/candidates{}", given.boxes)
    values |= numbered("in/candidates{}_labels", given.labels)

    def names(official: str) -> list[str]:
        return [conversion.used[official].removeprefix(PREFIX)]

    return [
        *recorded.input_rows(),
        *recorded.rows(values, FLOAT64),
        *step_rows(recorded, branch, losses, given.pyramid, names),
        *count_rows(recorded, values),
    ]


def _num_classes(recorded: Recorded) -> int:
    return recorded.shapes["mask_iou_head.fc_mask_iou.bias"][0]


def _given(recorded: Recorded) -> Given:
    info, inputs = recorded.info, recorded.inputs()
    images = zip(info["seeds"], inputs.boxes, inputs.labels, info["sizes"], strict=True)
    count, classes = info["num_candidates"], _num_classes(recorded)
    made = [make_candidates(*image, count, classes) for image in images]
    return Given(
        pyramid=make_pyramid(info["seeds"], info["sizes"], LEVELS),
        targets=make_batch(inputs).targets,
        boxes=tuple(torch.from_numpy(boxes).double() for boxes, _ in made),
        labels=tuple(torch.from_numpy(labels) for _, labels in made),
    )


def _training(
    recorded: Recorded, branch: MaskBranch, scheme: Any, given: Given, factor: float
) -> tuple[Values, Losses]:
    classes, targets, pyramid = _num_classes(recorded), given.targets, given.pyramid
    sampled = RegionSampler(assigner=scheme.assigner, sampler=scheme.sampler, num_classes=classes)
    with (
        mock.patch.object(torch, "randperm", fixed_permutation),
        samples_of(scheme.sampler) as samples,
    ):
        regions = sampled([one[:, :4] for one in given.boxes], targets)
    said, values = trained_regions(branch, pyramid, regions, samples, targets)
    losses = scheme.losses(said, regions, targets, factor)
    return {f"train/{k}" if "/" not in k else k: v for k, v in values.items()}, losses


def _evaluation(recorded: Recorded, branch: MaskBranch, given: Given) -> Values:
    """Both images in one batch: officially each is one."""
    info, pyramid = recorded.info, given.pyramid
    memory = _memory(pyramid)
    infos, found = [], []
    for b, (height, width) in enumerate(info["ori_shapes"]):
        x, y = info["eval"][b]["scale_factor_f32"][:2]
        infos.append(ImageInfo(image_id=b, original_size=(height, width), scale=(x, y)))
        boxes = given.boxes[b][:, :4] / torch.tensor([x, y, x, y], dtype=torch.float64)
        scores = given.boxes[b][:, 4]
        found.append(Detections(boxes_xyxy_px=boxes, scores=scores, labels=given.labels[b]))
    values = found_masks(branch, memory, found, infos)
    for b, one in enumerate(found):
        values[f"det{b}_boxes_scores"] = scored(one.boxes_xyxy_px, one.scores)
    return {f"eval/{name}": value for name, value in values.items()}


def _memory(pyramid: Pyramid) -> Memory:
    tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in pyramid.maps], dim=1)
    return Memory(
        tokens=tokens,
        padding=torch.zeros(tokens.shape[:2], dtype=torch.bool),
        shapes=pyramid.shapes,
        strides=pyramid.strides,
        valid_ratios=tokens.new_ones(len(tokens), len(pyramid.maps), 2),
    )
