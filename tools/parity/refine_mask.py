"""The detector's mask branch alone, on given maps and boxes, against its official counterpart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from codetr.checkpoints.experiment import compose_experiment
from codetr.checkpoints.official import convert_official
from codetr.models.masks import MaskBranch
from codetr.structures import Detections, ImageInfo, Memory, Pyramid, Targets
from codetr.supervision.aux_heads.matched import RegionSampler
from tools.parity.branch_values import found_masks, samples_of, trained_regions
from tools.parity.co_detr import FLOAT64
from tools.parity.head_inputs import STRIDES, make_boxes, make_features
from tools.parity.heads import feature_rows
from tools.parity.inputs import targets_of
from tools.parity.recorded import Recorded
from tools.parity.rules import fixed_permutation
from tools.parity.rules_masks import BRANCHES, make_candidates, make_masks
from tools.parity.step import count_rows, gradient_rows, loss_rows
from tools.parity.table import Row
from tools.parity.values import Values, scored

PREFIX = "detector.mask_branch."
LEVELS = 5
"""Of the encoder, finest first."""


def is_refine_mask(recorded: Recorded) -> bool:
    """Whether the recorded state dict is that of such a branch."""
    return all(key.startswith(BRANCHES) for key in recorded.shapes)


@dataclass(frozen=True, kw_only=True)
class Inputs:
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
    _load(branch, recorded)
    given = _inputs(recorded)
    factor = scheme.lambda_2 * int(cfg.model.detector.head.num_layers)
    rows = list(_given_rows(recorded, given))
    rows += _training(recorded, branch, scheme, given, factor)
    with torch.no_grad():
        values = _evaluation(recorded, branch, given)
    return [*rows, *recorded.rows(values, FLOAT64)]


def _num_classes(recorded: Recorded) -> int:
    return recorded.shapes["mask_iou_head.fc_mask_iou.bias"][0]


def _load(branch: nn.Module, recorded: Recorded) -> None:
    conversion = convert_official(recorded.state())
    assert not conversion.unused, conversion.unused
    branch.load_state_dict({k.removeprefix(PREFIX): v for k, v in conversion.state.items()})


def _inputs(recorded: Recorded) -> Inputs:
    info = recorded.info
    maps = make_features(info["seeds"], info["batch_hw"])[:LEVELS]
    pyramid = Pyramid(
        maps=tuple(torch.from_numpy(m).double().requires_grad_() for m in maps),
        strides=STRIDES[:LEVELS],
    )
    targets, boxes, labels = [], [], []
    classes = _num_classes(recorded)
    for seed, size, keep in zip(info["seeds"], info["sizes"], info["keep"], strict=True):
        corners, names = make_boxes(seed, size, keep)
        masks = torch.from_numpy(make_masks(corners, size))
        targets.append(targets_of(corners, names, torch.tensor(size).flip(0), masks=masks))
        count = info["num_candidates"]
        found, guesses = make_candidates(seed, corners, names, size, count, classes)
        boxes.append(torch.from_numpy(found).double())
        labels.append(torch.from_numpy(guesses))
    return Inputs(pyramid=pyramid, targets=tuple(targets), boxes=tuple(boxes), labels=tuple(labels))


def _given_rows(recorded: Recorded, given: Inputs) -> Iterator[Row]:
    for b, target in enumerate(given.targets):
        assert target.masks is not None
        yield recorded.row(f"in/gt{b}_labels", target.labels)
        yield recorded.row(f"in/gt{b}_masks", target.masks)
        yield recorded.row(f"in/candidates{b}", given.boxes[b], FLOAT64.arrays)
        yield recorded.row(f"in/candidates{b}_labels", given.labels[b])


def _training(
    recorded: Recorded, branch: MaskBranch, scheme: Any, given: Inputs, factor: float
) -> list[Row]:
    classes, targets, pyramid = _num_classes(recorded), given.targets, given.pyramid
    sampled = RegionSampler(assigner=scheme.assigner, sampler=scheme.sampler, num_classes=classes)
    with (
        mock.patch.object(torch, "randperm", fixed_permutation),
        samples_of(scheme.sampler) as samples,
    ):
        regions = sampled([one[:, :4] for one in given.boxes], targets)
    said, values = trained_regions(branch, pyramid, regions, samples, targets)
    losses = scheme.losses(said, regions, targets, factor)
    total = torch.stack([t.value * t.weight for t in losses.values()]).sum()
    total.backward()
    named = {f"train/{k}" if "/" not in k else k: v for k, v in values.items()}
    official = recorded.step()
    ours = {f"loss_{name}": term for name, term in losses.items()}
    return [
        *recorded.rows(named, FLOAT64),
        *loss_rows(official, ours, float(total.detach()), FLOAT64),
        *count_rows(official, values),
        *gradient_rows(official, branch, partial(_own_names, recorded), FLOAT64.gradients),
        *feature_rows(recorded, pyramid),
    ]


def _evaluation(recorded: Recorded, branch: MaskBranch, given: Inputs) -> Values:
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


def _own_names(recorded: Recorded, official: str) -> list[str]:
    """The branch's parameters that hold an official one."""
    (ours,) = convert_official({official: torch.zeros(recorded.shapes[official])}).state
    return [ours.removeprefix(PREFIX)]
