"""All quantities of one dense auxiliary head alone, under their official names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from codetr.boxes import paired_iou
from codetr.structures import Batch, Detections, Pyramid
from codetr.supervision.aux_heads.coder import centerness, centres_xyxy, encode_distances
from codetr.supervision.aux_heads.dense import (
    DenseBranches,
    DensePredictions,
    focal_and_giou_losses,
)
from codetr.supervision.aux_heads.matched import DenseTargets, boxes_xyxy_px
from codetr.supervision.aux_heads.protocol import AuxOutput
from tools.parity.values import Values, detections, numbered


@dataclass(frozen=True, kw_only=True)
class HeadRun:
    """A ``head`` in training, its inputs, what it said (None for the two-stage head) and what its
    ``forward`` returned from that.
    """

    head: Any
    pyramid: Pyramid
    batch: Batch
    predictions: Any
    output: AuxOutput


def run_dense(head: nn.Module, pyramid: Pyramid, batch: Batch) -> HeadRun:
    """The branches run once, their answers serve all quantities."""
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
    """Raw outputs, detections and assignments; ``quality`` is the official name of the branch,
    ``arrange`` puts detections into the official order.
    """
    with mock.patch.object(run.head, "predictions", return_value=run.predictions):
        found = run.head.predict(run.pyramid, run.batch.images)
    own = detections("det{}", (arrange(one) for one in found))
    return outputs(run, quality) | own | assignments(run)


def by_class(found: Detections) -> Detections:
    """Class by class, within a class best first."""
    return found.take(found.labels.argsort(stable=True))


def outputs(run: HeadRun, quality: str) -> Values:
    """``out/cls{l}`` and so on: (B, channels, h, w) of level l."""
    said: DensePredictions = run.predictions
    parts = {"cls": said.logits, "reg": said.regression}
    if said.quality is not None:
        parts[quality] = said.quality[..., None]
    values = {}
    for name, flat in parts.items():
        cells = [h * w for h, w in run.pyramid.shapes]
        per_cell = flat.shape[1] // sum(cells)
        levels = flat.split([n * per_cell for n in cells], dim=1)
        for level, (shape, value) in enumerate(zip(run.pyramid.shapes, levels, strict=True)):
            maps = value.reshape(len(run.batch), *shape, -1).permute(0, 3, 1, 2)
            values[f"out/{name}{level}"] = maps
    return values


def _positives(run: HeadRun, wanted: DenseTargets, assigned: Tensor, anchors: Tensor) -> Values:
    """Place, label, target and anchor of every positive."""
    values = {}
    for b, (row, target) in enumerate(zip(assigned, run.batch.targets, strict=True)):
        positive = _where(wanted.positive[b])
        values[f"assign{b}_pos_idx"] = positive
        values[f"assign{b}_pos_label"] = wanted.labels[b, positive]
        values[f"assign{b}_pos_target_box"] = boxes_xyxy_px(target.boxes, target)[row[positive]]
        values[f"assign{b}_pos_anchor"] = anchors[positive]
    return values


def _at_positives(run: HeadRun, wanted: DenseTargets, name: str, table: Tensor) -> Values:
    """``assign{b}_pos_NAME``: the rows of ``table`` (B, A, ...) at the positives."""
    rows = (values[positive] for values, positive in zip(table, wanted.positive, strict=True))
    return numbered(f"assign{{}}_pos_{name}", rows)


def _where(mask: Tensor) -> Tensor:
    return mask.nonzero().squeeze(1)


def _assignment(run: HeadRun) -> tuple[Any, Tensor, DenseTargets]:
    """The head's priors, which box each of them has, and what that asks for."""
    priors = run.head.grid(run.pyramid, run.batch.images.padded_sizes)
    assigned = run.head.assign(run.predictions, priors, run.batch)
    return priors, assigned, run.head.targets(assigned, priors, run.batch)


def _usable(anchors: Any) -> Values:
    return {"counts/usable": anchors.usable.sum(dim=1)}


def atss_values(run: HeadRun) -> Values:
    """The assignment, and the centerness that it asks for."""
    anchors, assigned, wanted = _assignment(run)
    quality = centerness(encode_distances(centres_xyxy(anchors.boxes), wanted.boxes_px))
    return {
        **_usable(anchors),
        **_positives(run, wanted, assigned, anchors.boxes),
        **_at_positives(run, wanted, "centerness", quality),
    }


def retinanet_values(run: HeadRun) -> Values:
    """The assignment, which anchors it ignores, and the offsets that it asks for."""
    anchors, assigned, wanted = _assignment(run)
    offsets = run.head.coder.encode(anchors.boxes, wanted.boxes_px)
    ignored = (_where(row) for row in wanted.ignored & anchors.usable)
    return {
        **_usable(anchors),
        **_positives(run, wanted, assigned, anchors.boxes),
        **_at_positives(run, wanted, "delta_target", offsets),
        **numbered("assign{}_ignored_idx", ignored),
    }


def fcos_values(run: HeadRun) -> Values:
    """The assignment, the distances and centerness that it asks for, and the queries' boxes."""
    points, assigned, wanted = _assignment(run)
    sides = encode_distances(points.centres, wanted.boxes_px)
    values = {}
    for b, (found, target) in enumerate(zip(run.output.candidates, run.batch.targets, strict=True)):
        positive = found.labels < run.head.num_classes
        values[f"assign{b}_query_coords"] = boxes_xyxy_px(found.boxes[positive], target)
        values[f"assign{b}_pos_point"] = points.centres[positive]
    return {
        **values,
        **_positives(run, wanted, assigned, points.boxes),
        **_at_positives(run, wanted, "ltrb", sides),
        **_at_positives(run, wanted, "centerness", centerness(sides)),
    }


def gfl_values(run: HeadRun) -> Values:
    """The assignment, and the targets that depend on the predictions."""
    anchors, assigned, wanted = _assignment(run)
    boxes = run.head.decode(anchors, run.predictions.regression)
    weight = run.predictions.logits.sigmoid().amax(dim=2) * wanted.positive
    distances = encode_distances(centres_xyxy(anchors.boxes), wanted.boxes_px)
    distances = run.head.coder.clamp(distances / anchors.strides[:, None])
    return {
        **_usable(anchors),
        **_positives(run, wanted, assigned, anchors.boxes),
        **_at_positives(run, wanted, "quality", paired_iou(boxes, wanted.boxes_px)),
        **_at_positives(run, wanted, "box_weight", weight),
        **_at_positives(run, wanted, "distance_target", distances),
        **_at_positives(run, wanted, "pred_box", boxes),
        "counts/box_avg_factor": weight.sum().clamp(min=1),
    }


def paa_values(run: HeadRun) -> Values:
    """Both stages of the assignment, and the mixture of every box in between."""
    head, batch = run.head, run.batch
    anchors, assigned, wanted = _assignment(run)
    proposed = DenseBranches.assign(head, run.predictions, anchors, batch)
    first_targets = head.targets(proposed, anchors, batch)
    boxes = head.decode(anchors, run.predictions.regression)
    focal, giou_loss = focal_and_giou_losses(run.predictions.logits, boxes, first_targets)
    losses = head.cls_weight * focal + head.bbox_weight * giou_loss
    iou = paired_iou(boxes, wanted.boxes_px)
    values = _usable(anchors)
    iterations: list[Tensor] = []
    for b, target in enumerate(batch.targets):
        first = _where(proposed[b] >= 0)
        values[f"assign{b}_initial_pos_idx"] = first
        values[f"assign{b}_initial_gt"] = proposed[b, first]
        values[f"assign{b}_initial_loss"] = losses[b, first]
        found, steps = _mixtures(head, proposed[b], losses[b], anchors.level_sizes, len(target))
        values |= {f"gmm{b}_{name}": value for name, value in found.items()}
        iterations.append(steps)
    return {
        **values,
        **_positives(run, wanted, assigned, anchors.boxes),
        **_at_positives(run, wanted, "iou_target", iou),
        "counts/gmm_iterations": torch.cat(iterations),
    }


def _mixtures(
    head: Any, proposed: Tensor, losses: Tensor, level_sizes: tuple[int, ...], count: int
) -> tuple[Values, Tensor]:
    """``{box}_candidates`` and so on for the boxes that have a mixture, and its iterations."""
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
