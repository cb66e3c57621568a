"""Quantities of a dense auxiliary head on its own, by official name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from codetr.boxes import centerness, centres_xyxy, encode_distances, paired_iou
from codetr.structures import Batch, Detections, Pyramid
from codetr.supervision.aux_heads import AuxOutput
from codetr.supervision.aux_heads.dense import (
    DenseBranches,
    focal_and_giou_losses,
)
from codetr.supervision.aux_heads.matched import DenseTargets, boxes_xyxy_px
from tools.parity.values import (
    Values,
    at_positives,
    branch_maps,
    detections,
    numbered,
    places,
    positives,
)


@dataclass(frozen=True, kw_only=True)
class HeadRun:
    """One training step of a ``head``: its inputs, its ``predictions`` (None for the two-stage
    head) and the ``output`` of ``forward``.
    """

    head: Any
    pyramid: Pyramid
    batch: Batch
    predictions: Any
    output: AuxOutput


def run_dense(head: nn.Module, pyramid: Pyramid, batch: Batch) -> HeadRun:
    """Run the branches once and reuse their predictions for all quantities."""
    predictions = head.predictions(pyramid)  # type: ignore[operator]
    with mock.patch.object(head, "predictions", return_value=predictions):
        output = head(pyramid, batch)
    return HeadRun(head=head, pyramid=pyramid, batch=batch, predictions=predictions, output=output)


@torch.no_grad()
def dense_values(
    run: HeadRun,
    quality: str,
    assignments: Callable[[HeadRun], Values],
    arrange: Callable[[Detections], Detections] = lambda found: found,
) -> Values:
    """Raw outputs, detections and assignments. ``quality`` is the official name of that branch;
    ``arrange`` sorts detections as the official code does.
    """
    with mock.patch.object(run.head, "predictions", return_value=run.predictions):
        found = run.head.predict(run.pyramid, run.batch.images)
    own = detections("det{}", (arrange(one) for one in found))
    raw = branch_maps("out/", run.predictions, run.pyramid, quality)
    return raw | own | assignments(run)


def by_class(found: Detections) -> Detections:
    """Sort by class, within a class by score."""
    return found.take(found.labels.argsort(stable=True))


def _assignment(run: HeadRun) -> tuple[Any, DenseTargets]:
    """The head's priors, and the targets of their assignment."""
    priors = run.head.grid(run.pyramid, run.batch.images.padded_sizes)
    assigned = run.head.assign(run.predictions, priors, run.batch)
    return priors, run.head.targets(assigned, priors, run.batch)


def _usable(anchors: Any) -> Values:
    return {"counts/usable": anchors.usable.sum(dim=1)}


def atss_values(run: HeadRun) -> Values:
    """The assignment and its centerness targets."""
    anchors, wanted = _assignment(run)
    quality = centerness(encode_distances(centres_xyxy(anchors.boxes), wanted.boxes_px))
    return {
        **_usable(anchors),
        **positives("assign{}", wanted, anchors.boxes),
        **at_positives("assign{}_pos_centerness", wanted, quality),
    }


def retinanet_values(run: HeadRun) -> Values:
    """The assignment, ignored anchors, and offset targets."""
    anchors, wanted = _assignment(run)
    offsets = run.head.coder.encode(anchors.boxes, wanted.boxes_px)
    ignored = (places(row) for row in wanted.ignored & anchors.usable)
    return {
        **_usable(anchors),
        **positives("assign{}", wanted, anchors.boxes),
        **at_positives("assign{}_pos_delta_target", wanted, offsets),
        **numbered("assign{}_ignored_idx", ignored),
    }


def fcos_values(run: HeadRun) -> Values:
    """The assignment, distance and centerness targets, and the boxes of positive queries."""
    points, wanted = _assignment(run)
    sides = encode_distances(points.centres, wanted.boxes_px)
    values = {}
    for b, (found, target) in enumerate(zip(run.output.candidates, run.batch.targets, strict=True)):
        positive = found.labels < run.head.num_classes
        values[f"assign{b}_query_coords"] = boxes_xyxy_px(found.boxes[positive], target)
        values[f"assign{b}_pos_point"] = points.centres[positive]
    return {
        **values,
        **positives("assign{}", wanted, points.boxes),
        **at_positives("assign{}_pos_ltrb", wanted, sides),
        **at_positives("assign{}_pos_centerness", wanted, centerness(sides)),
    }


def gfl_values(run: HeadRun) -> Values:
    """The assignment, and targets that depend on the predictions."""
    anchors, wanted = _assignment(run)
    boxes = run.head.decode(anchors, run.predictions.regression)
    weight = run.predictions.logits.sigmoid().amax(dim=2) * wanted.positive
    distances = encode_distances(centres_xyxy(anchors.boxes), wanted.boxes_px)
    distances = run.head.coder.clamp(distances / anchors.strides[:, None])
    return {
        **_usable(anchors),
        **positives("assign{}", wanted, anchors.boxes),
        **at_positives("assign{}_pos_quality", wanted, paired_iou(boxes, wanted.boxes_px)),
        **at_positives("assign{}_pos_box_weight", wanted, weight),
        **at_positives("assign{}_pos_distance_target", wanted, distances),
        **at_positives("assign{}_pos_pred_box", wanted, boxes),
        "counts/box_avg_factor": weight.sum().clamp(min=1),
    }


def paa_values(run: HeadRun) -> Values:
    """Both stages of the assignment, and each box's mixture in between."""
    head, batch = run.head, run.batch
    anchors, wanted = _assignment(run)
    proposed = DenseBranches.assign(head, run.predictions, anchors, batch)
    first_targets = head.targets(proposed, anchors, batch)
    boxes = head.decode(anchors, run.predictions.regression)
    focal, giou_loss = focal_and_giou_losses(run.predictions.logits, boxes, first_targets)
    losses = head.cls_weight * focal + head.bbox_weight * giou_loss
    iou = paired_iou(boxes, wanted.boxes_px)
    values = _usable(anchors)
    iterations: list[Tensor] = []
    for b, target in enumerate(batch.targets):
        first = places(proposed[b] >= 0)
        values[f"assign{b}_initial_pos_idx"] = first
        values[f"assign{b}_initial_gt"] = proposed[b, first]
        values[f"assign{b}_initial_loss"] = losses[b, first]
        found, steps = _mixtures(head, proposed[b], losses[b], anchors.level_sizes, len(target))
        values |= {f"gmm{b}_{name}": value for name, value in found.items()}
        iterations.append(steps)
    return {
        **values,
        **positives("assign{}", wanted, anchors.boxes),
        **at_positives("assign{}_pos_iou_target", wanted, iou),
        "counts/gmm_iterations": torch.cat(iterations),
    }


def _mixtures(
    head: Any, proposed: Tensor, losses: Tensor, level_sizes: tuple[int, ...], count: int
) -> tuple[Values, Tensor]:
    """``{box}_candidates`` and so on for each box, and the iterations of the mixtures that were
    fitted.
    """
    pool = head.assigner.pools(proposed, losses, level_sizes, count)
    mixture = head.assigner.mixture(pool.losses)
    low, high = mixture.log_joint(pool.losses)
    members = pool.losses.isfinite()
    values: Values = {}
    for box in range(count):
        own = members[:, box]
        parameters = (mixture.means, mixture.variances, mixture.weights)
        values |= {
            f"{box}_candidates": pool.anchors[own, box],
            f"{box}_losses": pool.losses[own, box],
            f"{box}_mean_var_weight": torch.stack([p[:, box] for p in parameters]),
            f"{box}_component": (low < high)[own, box].long(),
            f"{box}_log_density": torch.logaddexp(low, high)[own, box],
        }
    return values, mixture.iterations[members.sum(dim=0) > 1]
