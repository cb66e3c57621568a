"""Compare a single auxiliary head, or the detector's mask branch, on given maps with recorded
numbers of its official counterpart, in float64.
"""

from __future__ import annotations

import inspect
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from codetr.boxes import centerness, centres_xyxy, encode_distances, paired_iou
from codetr.checkpoints.experiment import compose_experiment
from codetr.checkpoints.official import convert_official
from codetr.errors import UserError
from codetr.loss_terms import Losses, total_loss
from codetr.nms import ClasswiseNms
from codetr.structures import Batch, Detections, Memory, Pyramid
from codetr.supervision.assigners.paa import PaaAssigner
from codetr.supervision.aux_heads import AuxOutput
from codetr.supervision.aux_heads.anchors import DeltaCoder
from codetr.supervision.aux_heads.atss import AtssHead
from codetr.supervision.aux_heads.fcos import FcosHead
from codetr.supervision.aux_heads.gfl import DistributionCoder, GflHead
from codetr.supervision.aux_heads.matched import RegionSampler, boxes_xyxy_px
from codetr.supervision.aux_heads.paa import PaaHead
from codetr.supervision.aux_heads.rcnn import RcnnHead
from codetr.supervision.aux_heads.retinanet import RetinaNetHead
from codetr.supervision.aux_heads.selection import DenseSelection, VotedSelection
from codetr.training.branches import in_original
from tools.parity.case import original_infos
from tools.parity.co_detr import FLOAT64
from tools.parity.inputs import make_batch
from tools.parity.mask_branch import found_masks, trained_regions
from tools.parity.recorded import Recorded
from tools.parity.regions import rcnn_values, samples_of
from tools.parity.rules import (
    STRIDES,
    fixed_permutation,
    make_candidates,
    make_pyramid,
)
from tools.parity.step import count_rows, gradient_rows, loss_rows
from tools.parity.table import Row, compare
from tools.parity.values import Values, branch_maps, detections, numbered, places, positives

DENSE: dict[str, type[nn.Module]] = {
    "ATSSHead": AtssHead,
    "RetinaHead": RetinaNetHead,
    "FCOSHead": FcosHead,
    "PAAHead": PaaHead,
    "GFLHead": GflHead,
}
"""Dense heads by their official class."""


PREFIX = "detector.mask_branch."
MASK_LEVELS = 5
"""The encoder's levels, finest first, that the mask branch reads."""


def check_head(recorded: Recorded) -> list[Row]:
    """Inputs, raw outputs, assignments, detections, losses and gradients.

    Raises UserError if the head is unknown.
    """
    info, of_masks = recorded.info, "num_candidates" in recorded.info
    if not of_masks:
        head, rename = _head(recorded)
        state = {rename(key): value for key, value in recorded.state().items()}
        head.double().load_state_dict(state)
    batch = make_batch(recorded.inputs())
    pyramid = make_pyramid(info["seeds"], info["sizes"], MASK_LEVELS if of_masks else len(STRIDES))
    with mock.patch.object(torch, "randperm", fixed_permutation):
        if of_masks:
            head, rename, values, losses = _mask_branch(recorded, pyramid, batch)
        else:
            quantities = rcnn_values if isinstance(head, RcnnHead) else _dense_values
            output: AuxOutput = head(pyramid, batch)
            values, losses = quantities(head, pyramid, batch, output), output.losses
    maps = [zlib.crc32(m.detach().float().numpy().tobytes()) for m in pyramid.maps]
    values["in/feature_crc32_f32"] = torch.tensor(maps)
    return [
        *recorded.input_rows(),
        *_value_rows(recorded, values),
        *_step_rows(recorded, head, rename, losses, pyramid),
        *count_rows(recorded, values),
    ]


def _head(recorded: Recorded) -> tuple[nn.Module, Callable[[str], str]]:
    """Our counterpart of the head in info.json, and our name of an official parameter."""
    info, levels = recorded.info, len(STRIDES)
    if "roi_head" in info:
        box_head = info["roi_head"]["bbox_head"]
        return RcnnHead(
            num_classes=box_head["num_classes"], channels=box_head["in_channels"], num_levels=levels
        ), _region_name
    config = info.get("head_config", {})
    kind, test = config.get("type"), config.get("test_cfg")
    if kind not in DENSE:
        raise UserError(
            f"{recorded.folder}/info.json: head_config.type is {kind}: give a folder with a "
            f"roi_head, or one of {', '.join(DENSE)}"
        )
    scaled = "num_levels" in inspect.signature(DENSE[kind]).parameters
    choice = VotedSelection if config.get("score_voting") else DenseSelection
    head = DENSE[kind](
        num_classes=config["num_classes"],
        channels=config["in_channels"],
        num_convs=config["stacked_convs"],
        selection=choice(
            nms=ClasswiseNms(iou=test["nms"]["iou_threshold"], limit=test["max_per_img"]),
            per_level=test["nms_pre"],
            threshold=test["score_thr"],
        ),
        **({"num_levels": levels} if scaled else {}),
    )
    quality = "iou" if isinstance(head, PaaHead) else "centerness"
    return head, lambda key: _dense_name(key).replace("centerness", quality)


def _region_name(key: str) -> str:
    """As in checkpoints: the part after ``schemes.collaborative.heads.HEAD.``."""
    (name,) = convert_official({key: torch.zeros(())}).state
    return name.split(".", 4)[-1]


def _dense_name(key: str) -> str:
    key = key.removeprefix("bbox_head.0.").removesuffix(".scale")
    key = re.sub(r"^(retina|conv|atss|gfl)_", "", key)
    return re.sub(r"^(cls|reg)_convs", r"\1_tower", key).replace(".gn.", ".norm.")


@torch.no_grad()
def _dense_values(head: Any, pyramid: Pyramid, batch: Batch, output: AuxOutput) -> Values:
    """Raw outputs, detections, the assignment, and targets and predictions at its positives."""
    said, priors = head.predictions(pyramid), head.grid(pyramid, batch.images.padded_sizes)
    with mock.patch.object(head, "assigner", mock.Mock(wraps=head.assigner)) as assigner:
        wanted = head.targets(head.assign(said, priors, batch), priors, batch)
    found = head.predict(pyramid, batch.images)
    if isinstance(head.selection, VotedSelection):  # officially by class, within a class by score
        found = tuple(one.take(one.labels.argsort(stable=True)) for one in found)
    boxes, coder = head.decode(priors, said.regression), getattr(head, "coder", None)
    sides = encode_distances(centres_xyxy(priors.boxes), wanted.boxes_px)
    iou = paired_iou(boxes, wanted.boxes_px)
    weight = said.logits.sigmoid().amax(dim=2) * wanted.positive
    at_priors = {
        "centerness": centerness(sides),
        "ltrb": sides,
        "quality": iou,
        "iou_target": iou,
        "box_weight": weight,
        "pred_box": boxes,
    }
    if hasattr(priors, "centres"):
        at_priors["point"] = priors.centres.expand(len(batch), -1, -1)
    if isinstance(coder, DeltaCoder):
        at_priors["delta_target"] = coder.encode(priors.boxes, wanted.boxes_px)
    elif isinstance(coder, DistributionCoder):
        at_priors["distance_target"] = coder.clamp(sides / priors.strides[:, None])
    values = {
        **branch_maps("out/", said, pyramid, "iou" if isinstance(head, PaaHead) else "ctr"),
        **detections("det{}", found),
        **positives("assign{}", wanted, priors.boxes, at_priors),
        **numbered("assign{}_ignored_idx", map(places, wanted.ignored & priors.usable)),
        "counts/usable": priors.usable.sum(dim=1),
        "counts/box_avg_factor": weight.sum().clamp(min=1),
    }
    for b, (one, target) in enumerate(zip(output.candidates, batch.targets, strict=True)):
        own = one.boxes[one.labels < head.num_classes]
        values[f"assign{b}_query_coords"] = boxes_xyxy_px(own, target)
    if isinstance(head, PaaHead):
        proposed, losses, sizes, counts = assigner.call_args.args
        values |= _mixtures(head.assigner, proposed, losses, sizes, counts)
    return values


def _mixtures(
    assigner: PaaAssigner,
    proposed: Tensor,
    losses: Tensor,
    level_sizes: Sequence[int],
    counts: Sequence[int],
) -> Values:
    """PAA's first stage, and the mixture of each box of each image."""
    values: Values = {}
    iterations: list[Tensor] = []
    for b, (first, loss, count) in enumerate(zip(proposed, losses, counts, strict=True)):
        index = places(first >= 0)
        values[f"assign{b}_initial_pos_idx"] = index
        values[f"assign{b}_initial_gt"] = first[index]
        values[f"assign{b}_initial_loss"] = loss[index]
        pool = assigner.pools(first, loss, level_sizes, count)
        mixture = assigner.mixture(pool.losses)
        low, high = mixture.log_joint(pool.losses)
        members = pool.losses.isfinite()
        iterations.append(mixture.iterations[members.sum(dim=0) > 1])
        parameters = torch.stack([mixture.means, mixture.variances, mixture.weights])
        for box, own in enumerate(members.T):
            values |= {
                f"gmm{b}_{box}_candidates": pool.anchors[own, box],
                f"gmm{b}_{box}_losses": pool.losses[own, box],
                f"gmm{b}_{box}_mean_var_weight": parameters[:, :, box],
                f"gmm{b}_{box}_component": (low < high)[own, box].long(),
                f"gmm{b}_{box}_log_density": torch.logaddexp(low, high)[own, box],
            }
    return values | {"counts/gmm_iterations": torch.cat(iterations)}


def _mask_branch(
    recorded: Recorded, pyramid: Pyramid, batch: Batch
) -> tuple[nn.Module, Callable[[str], str], Values, Losses]:
    """The branch and the losses of the experiment, on stand-ins for the detector's predictions."""
    classes = recorded.shapes["mask_iou_head.fc_mask_iou.bias"][0]
    cfg = compose_experiment(recorded.experiment, classes)
    branch = instantiate(cfg.model.detector.mask_branch).double()
    scheme, conversion = instantiate(cfg.scheme.masks), convert_official(recorded.state())
    assert not conversion.unused, conversion.unused
    branch.load_state_dict({k.removeprefix(PREFIX): v for k, v in conversion.state.items()})
    info, inputs, values = recorded.info, recorded.inputs(), Values()
    images = zip(info["seeds"], inputs.boxes, inputs.labels, info["sizes"], strict=True)
    found = []
    for b, image in enumerate(images):
        candidates = make_candidates(*image, info["num_candidates"], classes)
        drawn, labels = map(torch.from_numpy, candidates)
        boxes, scores = drawn.double().split([4, 1], dim=1)
        found.append(Detections(boxes_xyxy_px=boxes, scores=scores[:, 0], labels=labels))
        values |= {f"in/candidates{b}": drawn, f"in/candidates{b}_labels": labels}
    sampled = RegionSampler(assigner=scheme.assigner, sampler=scheme.sampler, num_classes=classes)
    with samples_of(scheme.sampler) as samples:
        regions = sampled([one.boxes_xyxy_px for one in found], batch.targets)
    said, trained = trained_regions(branch, pyramid, regions, samples, batch.targets)
    values |= {f"train/{k}" if "/" not in k else k: v for k, v in trained.items()}
    factor = scheme.lambda_2 * int(cfg.model.detector.head.num_layers)
    with torch.no_grad():
        infos = original_infos(info, batch.infos)
        moved = in_original(found, infos)
        seen = found_masks(branch, _memory(pyramid), moved, infos) | detections("det{}", moved)
    values |= {f"eval/{name}": value for name, value in seen.items()}
    losses = scheme.losses(said, regions, batch.targets, factor)
    return branch, lambda name: conversion.used[name].removeprefix(PREFIX), values, losses


def _memory(pyramid: Pyramid) -> Memory:
    tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in pyramid.maps], dim=1)
    return Memory(
        tokens=tokens,
        padding=torch.zeros(tokens.shape[:2], dtype=torch.bool),
        shapes=pyramid.shapes,
        strides=pyramid.strides,
        valid_ratios=tokens.new_ones(len(tokens), len(pyramid.maps), 2),
    )


def _step_rows(
    recorded: Recorded,
    head: nn.Module,
    rename: Callable[[str], str],
    losses: Losses,
    pyramid: Pyramid,
) -> Iterator[Row]:
    """Losses, and gradients of the ``head`` and of its input maps (zero for maps that it does not
    read). ``rename`` returns our name of an official parameter.
    """
    total, official = total_loss(losses), recorded.step()
    total.backward()
    ours = {f"loss_{name}": term for name, term in losses.items()}
    yield from loss_rows(official, ours, float(total.detach()), FLOAT64)
    yield from gradient_rows(official, head, lambda name: [rename(name)], FLOAT64.gradients)
    for level, norm in enumerate(recorded.losses["feature_grad_norms"]):
        features = pyramid.maps[level]
        own = torch.zeros_like(features) if features.grad is None else features.grad
        if f"grad/feature{level}" in recorded.arrays:
            yield recorded.row(f"grad/feature{level}", own, FLOAT64.gradients)
        yield compare(f"grad norm of feature{level}", own.norm(), norm, FLOAT64.gradients)


def _value_rows(recorded: Recorded, values: Values) -> Iterator[Row]:
    """Official voting turns boxes without area into NaN, ours keeps them; there only the lack of
    area is compared.
    """
    for name, ours in values.items():
        stored = recorded.arrays.get(name)
        if name.endswith("_boxes_scores") and stored is not None and ours.shape == stored.shape:
            flat = (ours[:, 2:4] <= ours[:, :2]).any(dim=1)
            ours[flat & torch.from_numpy(np.isnan(stored[:, 0])), :4] = torch.nan
    return recorded.rows(values, FLOAT64)
