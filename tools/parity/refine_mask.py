"""The detector's mask branch alone, on given maps and boxes, against its official counterpart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from codetr.checkpoints.experiment import compose_experiment
from codetr.checkpoints.official import convert_official
from codetr.loss_terms import LossTerm
from codetr.models.masks import MaskBranch
from codetr.structures import Detections, ImageInfo, Memory, Pyramid, Targets
from codetr.supervision.aux_heads.matched import RegionSampler
from tools.parity.branch_values import found_masks, samples_of, trained_regions
from tools.parity.head_inputs import STRIDES, make_boxes, make_features
from tools.parity.inputs import targets_of
from tools.parity.recorded import Recorded
from tools.parity.rules import fixed_permutation
from tools.parity.rules_masks import BRANCHES, make_candidates, make_masks
from tools.parity.step_details import detail_rows
from tools.parity.table import EXACT, Row, Tolerance, compare
from tools.parity.values import Values, scored

ARRAYS = Tolerance(absolute=1e-5, relative=1e-5)
PIXELS = Tolerance(absolute=1e-3)
LOSSES = Tolerance(relative=1e-6)
GRADIENTS = Tolerance(absolute=1e-9, relative=1e-5)
FEW_PIXELS = Tolerance(absolute=2)
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
    return rows + _rows(recorded, values)


def _num_classes(recorded: Recorded) -> int:
    return recorded.shapes["mask_iou_head.fc_mask_iou.bias"][0]


def _load(branch: nn.Module, recorded: Recorded) -> None:
    conversion = convert_official(recorded.state())
    assert not conversion.unused, conversion.unused
    prefix = "detector.mask_branch."
    branch.load_state_dict({k.removeprefix(prefix): v for k, v in conversion.state.items()})


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
        yield recorded.row(f"in/candidates{b}", given.boxes[b], ARRAYS)
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
    values |= {
        f"grad/feature{level}": torch.zeros_like(m) if m.grad is None else m.grad
        for level, m in enumerate(pyramid.maps)
    }
    named = {f"train/{k}" if "/" not in k else k: v for k, v in values.items()}
    return [
        *_rows(recorded, named),
        *_loss_rows(recorded, losses, float(total.detach()), values),
        *_gradient_rows(recorded, branch, pyramid),
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


def _rows(recorded: Recorded, values: Values) -> list[Row]:
    rows = []
    for name, value in values.items():
        if name in recorded.arrays:
            rows.append(recorded.row(name, value, _tolerance(name, recorded)))
    return rows


def _tolerance(name: str, recorded: Recorded) -> Tolerance:
    if name.endswith(("_bits", "_area")):
        return FEW_PIXELS
    if recorded.arrays[name].dtype.kind in "iu":
        return EXACT
    return PIXELS if name.endswith(("_rois", "_boxes_scores")) else ARRAYS


def _loss_rows(
    recorded: Recorded, losses: dict[str, LossTerm], total: float, values: Values
) -> Iterator[Row]:
    for name, official in recorded.losses["losses"].items():
        term = losses[name.removeprefix("loss_")]
        yield compare(name, float(term.value.detach()) * term.weight, official, LOSSES)
    yield compare("total", total, recorded.losses["total"], LOSSES)
    yield from detail_rows(recorded, values, LOSSES)


def _gradient_rows(recorded: Recorded, branch: nn.Module, pyramid: Pyramid) -> Iterator[Row]:
    parameters = dict(branch.named_parameters())
    shapes = recorded.shapes
    for key, official in recorded.losses["grad_norms"].items():
        (ours,) = convert_official({key: torch.zeros(shapes[key])}).state
        gradient = parameters[ours.removeprefix("detector.mask_branch.")].grad
        norm = float("nan") if gradient is None else float(gradient.norm())
        yield compare(f"grad {key}", norm, official, GRADIENTS)
    for level, official in enumerate(recorded.losses["feature_grad_norms"]):
        gradient = pyramid.maps[level].grad
        norm = 0.0 if gradient is None else float(gradient.norm())
        yield compare(f"grad norm of feature{level}", norm, official, GRADIENTS)
