"""How much matching changes from one checkpoint to the next (DN-DETR, arXiv 2203.01305, section 3;
Co-DETR, Figure 5).

V_n is the object that query n of an image is matched with, -1 for none. The instability IS is the
number of queries whose V_n differs between two checkpoints of a run, averaged over images. Its
maximum for an image is twice the number of objects.

IS depends on the order of queries: in models that select queries for every image, the same location
may get another index. A second, order-free number avoids this by identifying queries by their
anchors. Two queries count as the same if their anchors overlap with IoU ``min_iou`` or more or, for
anchors that are points, are at most ``max_distance`` apart, in image widths and heights. An object
that changes its query counts twice, as it does in IS: one query loses it and another one gets it.
The number is undefined if all anchors are equal (YOLOS).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from codetr.analysis.findings import Cell, Findings, mean
from codetr.analysis.subject import Subject, decode_main
from codetr.boxes import cxcywh_to_xyxy, paired_iou
from codetr.errors import UserError
from codetr.evaluation.figures import plain
from codetr.models.detectors.protocol import Detector
from codetr.structures import Batch
from codetr.supervision.assigners import HungarianMatcher


@dataclass(frozen=True)
class Matched:
    """Matching in one image: ``objects`` (L, Q) int64, V_n at every decoder layer; ``anchors``
    (Q, 4) cxcywh or (Q, 2), relative to the image, the initial anchors of the queries.
    """

    objects: Tensor
    anchors: Tensor


class Instability:
    """See the module."""

    title = "instability"

    def __init__(self, min_iou: float = 0.5, max_distance: float = 0.05) -> None:
        self.min_iou, self.max_distance = min_iou, max_distance

    def analyse_image(self, subject: Subject, batch: Batch, with_picture: bool) -> Matched:
        """Match the queries of every layer as in training."""
        (matched,) = match_queries(subject.model, subject.matcher, batch)
        return matched

    def report(self, found: Mapping[str, Sequence[Matched]]) -> Findings:
        """IS and its order-free variant per layer, from each checkpoint to the next. Raises
        UserError for a single checkpoint, and for checkpoints with different numbers of queries.
        """
        if len(found) < 2:
            raise UserError(
                "checkpoint: instability is between checkpoints of one run: give two or more, such "
                "as 'runs/NAME/epochs/*.ckpt' of a run with checkpointing=every_epoch"
            )
        steps = [
            (before, after, self._between(before, after, found))
            for before, after in pairwise(found)
        ]
        rows: list[tuple[Cell, ...]] = [
            (before, after, f"layer{layer}", bound, free)
            for before, after, values in steps
            for layer, (bound, free) in enumerate(values)
        ]
        return Findings(
            columns=("from", "to", "layer", "IS", "order-free IS"),
            rows=tuple(rows),
            notes=(
                "Queries that change the object they are matched with, mean over images; "
                "order-free: queries are identified by their anchors, not by their indices.",
            ),
            figures={"curves": _figure([(after, values) for _, after, values in steps])},
        )

    def _between(
        self, before: str, after: str, found: Mapping[str, Sequence[Matched]]
    ) -> list[tuple[float | None, float | None]]:
        """IS and its order-free variant of every layer."""
        pairs = list(zip(found[before], found[after], strict=True))
        if pairs and pairs[0][0].objects.shape != pairs[0][1].objects.shape:
            layers, queries = pairs[0][1].objects.shape
            raise UserError(
                f"checkpoint={after}: has {layers} layers with {queries} queries, unlike {before}: "
                "give checkpoints of one run"
            )
        counts = torch.stack([instability(a, b, self.min_iou, self.max_distance) for a, b in pairs])
        return [(mean(bound), mean(free)) for bound, free in counts.permute(2, 1, 0).tolist()]


def match_queries(model: Detector, matcher: HungarianMatcher, batch: Batch) -> list[Matched]:
    """For every image of the batch, the objects that the main queries of each layer are matched
    with.
    """
    memory = model.encode(batch.images)
    decoded = decode_main(model, memory)
    anchors = decoded.group.queries.anchors.float()
    counts = torch.tensor([0, *(len(t) for t in batch.targets)], device=anchors.device)
    before = counts.cumsum(0)  # number of targets in preceding images
    rows = []
    for pairs in matcher(decoded.layers, batch.targets):
        row = pairs.query.new_full(anchors.shape[:2], -1)
        row[pairs.image, pairs.query] = pairs.target - before[pairs.image]
        rows.append(row)
    objects = torch.stack(rows, dim=1).cpu()
    return [Matched(*both) for both in zip(objects, anchors.cpu(), strict=True)]


def instability(before: Matched, after: Matched, min_iou: float, max_distance: float) -> Tensor:
    """(2, L): IS and its order-free variant."""
    bound = changed_queries(before.objects, after.objects)
    return torch.stack([bound, changed_anchors(before, after, min_iou, max_distance)])


def changed_queries(before: Tensor, after: Tensor) -> Tensor:
    """(L,) IS: the number of queries whose object changes, from the objects (L, Q) of queries."""
    return (before != after).sum(-1).double()


def changed_anchors(before: Matched, after: Matched, min_iou: float, max_distance: float) -> Tensor:
    """(L,) the order-free variant of IS; NaN if all anchors of a checkpoint are equal."""
    layers = before.objects.shape[0]
    if any(len(m.anchors) > 1 and (m.anchors == m.anchors[0]).all() for m in (before, after)):
        return torch.full((layers,), torch.nan, dtype=torch.float64)
    rows = zip(before.objects, after.objects, strict=True)
    counts = [_moved(old, new, before, after, min_iou, max_distance) for old, new in rows]
    return torch.tensor(counts, dtype=torch.float64)


def _moved(
    old: Tensor, new: Tensor, before: Matched, after: Matched, min_iou: float, max_distance: float
) -> int:
    """The order-free variant for one layer, with the objects (Q,) of its queries before and
    after.
    """
    was, now = _query_of(old), _query_of(new)
    both = sorted(was.keys() & now.keys())
    one = len(was.keys() ^ now.keys())  # objects may outnumber queries
    a = before.anchors[[was[n] for n in both]]
    b = after.anchors[[now[n] for n in both]]
    if a.shape[-1] == 4:
        other = paired_iou(cxcywh_to_xyxy(a), cxcywh_to_xyxy(b)) < min_iou
    else:
        other = (a - b).norm(dim=-1) > max_distance
    return one + 2 * int(other.sum())


def _query_of(objects: Tensor) -> dict[int, int]:
    """The query of every matched object."""
    return {n: query for query, n in enumerate(objects.tolist()) if n >= 0}


def _figure(steps: Sequence[tuple[str, Sequence[tuple[float | None, float | None]]]]) -> Figure:
    """Plots of both numbers over the checkpoints, with a line per layer."""
    figure = Figure(figsize=(9.5, 4), layout="constrained")
    layers = len(steps[0][1])
    palette = colormaps["viridis"]
    titles = ("IS: queries by index", "order-free: queries by anchor")
    for which, (axes, title) in enumerate(
        zip(figure.subplots(1, 2, sharey=True), titles, strict=True)
    ):
        for layer in range(layers):
            values = [values[layer][which] for _, values in steps]
            heights = [float("nan") if value is None else value for value in values]
            colour = palette(0.9 * (1 - layer / max(layers - 1, 1)))
            axes.plot(heights, "o-", color=colour, label=f"layer {layer}", markersize=3)
        names = [plain(after) for after, _ in steps]
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize="small")
        axes.set_title(title, fontsize="medium")
        axes.set(ylim=(0, None), ylabel="queries per image" if which == 0 else "")
        axes.grid(alpha=0.3)
    numbers = figure.axes[0].get_legend_handles_labels()
    figure.legend(*numbers, fontsize="small", loc="outside right upper")
    return figure
