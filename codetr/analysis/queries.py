"""How far the original queries are from the customised positive queries (Co-DETR, Figure 7).

Original queries are those used at inference. They are positive if the last layer's one-to-one
matching assigns them an object, else negative. Customised positive queries come from the positive
samples of the auxiliary heads.

The paper does not say how distances are measured. We measure three:

- between the centres of the initial anchors, in percent of the image's diagonal, from each original
  query to the nearest customised one;
- the same, to all customised queries on average;
- between contents, as 1 minus the cosine, to the nearest customised query.

All are averaged over the queries of an image, then over images with objects. Customised queries
that pad a group with background are excluded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from codetr.analysis.findings import Cell, Findings, mean, pictures
from codetr.analysis.subject import Subject
from codetr.errors import UserError
from codetr.evaluation.figures import plain
from codetr.structures import Batch, Queries, QueryGroup
from codetr.supervision.schemes import Collaborative
from codetr.supervision.schemes.protocol import Start

KINDS = ("positive", "negative")
MEASURES = ("nearest %", "mean %", "content")
EVERY = "all"
"""Name of the customised queries of all heads together."""
COLOURS = {"hungarian": "red", "atss": "orange", "rcnn": "blue"}
"""As in the paper's figure; other heads take those in FURTHER."""
FURTHER = ("green", "magenta", "cyan", "yellow", "white")


@dataclass(frozen=True, kw_only=True)
class ImageResult:
    """Result for one image: ``distances`` by head and kind of original query, in the order of
    MEASURES, NaN if there are no such queries. With a picture: ``picture`` uint8 (3, H, W) and
    ``centres`` (n, 2) in its pixels, by the assigner of the queries.
    """

    distances: Mapping[tuple[str, str], tuple[float, ...]]
    picture: Tensor | None = None
    centres: Mapping[str, Tensor] | None = None


class QueryDistance:
    """See the module."""

    title = "queries"

    def analyse_image(self, subject: Subject, batch: Batch, with_picture: bool) -> ImageResult:
        """The distances in one image. Raises UserError for a checkpoint without such queries."""
        scheme = subject.trained_scheme(Collaborative)
        memory = subject.model.encode(batch.images)
        decoded = subject.decode(memory)
        main = decoded.group.queries
        start = Start(
            detector=subject.model, memory=memory, main=main, own=(), batch=with_masks(batch)
        )
        groups = scheme.propose(start).groups
        if not groups:
            raise UserError(
                f"{subject.source}: was trained without customised positive queries (K = 0, or "
                "scheme.collaborative.lambda_1=0): leave it out"
            )
        (pairs,) = subject.match(decoded.layers[-1:], batch)
        matched = torch.zeros(main.content.shape[1], dtype=torch.bool, device=subject.device)
        matched[pairs.query] = True
        size = batch.targets[0].size
        original = _starts(main, size)
        own = {
            "positive": _chosen(original, matched),
            "negative": _chosen(original, ~matched),
        }
        heads = {group.name.removeprefix("positive_"): _positives(group, size) for group in groups}
        heads[EVERY] = (
            torch.cat([centres for centres, _ in heads.values()]),
            torch.cat([content for _, content in heads.values()]),
        )
        distances = {
            (head, kind): measure(own[kind], customised, size.norm())
            for head, customised in heads.items()
            for kind in KINDS
        }
        if not with_picture:
            return ImageResult(distances=distances)
        centres = {"hungarian": own["positive"][0]} | {
            head: centres for head, (centres, _) in heads.items() if head != EVERY
        }
        return ImageResult(
            distances=distances,
            picture=subject.picture(batch),
            centres={name: points.cpu() for name, points in centres.items()},
        )

    def report(self, found: Mapping[str, Sequence[ImageResult]]) -> Findings:
        """Mean distances by checkpoint and head with a bar chart, and pictures of the anchors."""
        columns = ("checkpoint", "head", *(f"{k}: {m}" for m in MEASURES for k in KINDS))
        rows: list[tuple[Cell, ...]] = []
        for name, seen in found.items():
            heads = dict.fromkeys(head for head, _ in seen[0].distances) if seen else {}
            for head in heads:
                values = [
                    mean([s.distances[head, kind][i] for s in seen])
                    for i in range(len(MEASURES))
                    for kind in KINDS
                ]
                rows.append((name, head, *values))
        shown = []
        for looks in zip(*found.values(), strict=True):
            if looks[0].picture is not None:
                shown.append([partial(draw_centres, look) for look in looks])
        return Findings(
            columns=columns,
            rows=tuple(rows),
            notes=(
                "Distance from original queries, matched with an object (positive) or not"
                " (negative), to the customised positive queries of each head: between centres, in"
                " percent of the image's diagonal, to the nearest one and to all on average;"
                " between contents, as 1 minus the cosine, to the nearest one.",
            ),
            figures={
                "bars": _bars([row for row in rows if row[1] == EVERY]),
                **({"centres": pictures(list(found), shown)} if shown else {}),
            },
        )


def with_masks(batch: Batch) -> Batch:
    """A batch whose targets have masks, empty ones if need be: heads that learn masks need them
    for their loss, which is not used here.
    """
    targets = tuple(
        t
        if t.masks is not None
        else replace(t, masks=t.labels.new_zeros((len(t), *size), dtype=torch.uint8))
        for t, size in zip(batch.targets, batch.images.padded_sizes.tolist(), strict=True)
    )
    return replace(batch, targets=targets)


def _starts(queries: Queries, size: Tensor) -> tuple[Tensor, Tensor]:
    """Centres (Q, 2) in pixels and contents (Q, C) of the only image of a batch."""
    return queries.anchors[0, :, :2].float() * size, queries.content[0].float()


def _chosen(starts: tuple[Tensor, Tensor], which: Tensor) -> tuple[Tensor, Tensor]:
    return starts[0][which], starts[1][which]


def _positives(group: QueryGroup, size: Tensor) -> tuple[Tensor, Tensor]:
    """Centres and contents of a group's queries that are assigned an object."""
    assert group.assignment is not None
    return _chosen(_starts(group.queries, size), group.assignment.query)


def measure(
    original: tuple[Tensor, Tensor], customised: tuple[Tensor, Tensor], diagonal: Tensor
) -> tuple[float, ...]:
    """The MEASURES between original and customised queries, each given by centres (n, 2) and
    contents (n, C); NaN if either has no queries. ``diagonal`` in the unit of the centres.
    """
    if not (len(original[0]) and len(customised[0])):
        return (float("nan"),) * len(MEASURES)
    apart = 100 * torch.cdist(
        original[0], customised[0], compute_mode="donot_use_mm_for_euclid_dist"
    )
    apart = apart / diagonal
    alike = F.normalize(original[1], dim=-1) @ F.normalize(customised[1], dim=-1).T
    nearest, everyone = apart.min(dim=1).values.mean(), apart.mean()
    content = (1 - alike.max(dim=1).values).mean()
    return nearest.item(), everyone.item(), content.item()


def draw_centres(seen: ImageResult, axes: Axes) -> None:
    """Draw the image in grey and the centres in one colour per assigner."""
    assert seen.picture is not None
    assert seen.centres is not None
    axes.imshow(seen.picture.float().mean(0).numpy(), cmap="gray", vmin=0, vmax=400)
    further = iter(FURTHER)
    # Draw the few Hungarian ones on top of the many others.
    for name, points in reversed(list(seen.centres.items())):
        colour = COLOURS.get(name) or next(further, "white")
        x, y = points.unbind(-1)
        size = 40 if name == "hungarian" else 14
        axes.scatter(x - 0.5, y - 0.5, s=size, color=colour, label=name, edgecolors="black", lw=0.4)
    axes.legend(fontsize="x-small", loc="upper right", framealpha=0.6)


def _bars(rows: Sequence[tuple[Cell, ...]]) -> Figure:
    """Bar charts with a pair of bars, positive and negative, per checkpoint."""
    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    places = np.arange(len(rows))
    names = [plain(str(row[0])) for row in rows]
    for i, (axes, measured) in enumerate(zip(figure.subplots(1, 3), MEASURES, strict=True)):
        for k, kind in enumerate(KINDS):
            cells = [row[2 + 2 * i + k] for row in rows]
            heights = [0.0 if cell is None else float(cell) for cell in cells]
            axes.bar(places + 0.4 * (k - 0.5), heights, 0.38, label=f"original {kind}")
        axes.set_xticks(places, names, rotation=20, ha="right", fontsize="small")
        axes.set_title(measured, fontsize="medium")
        axes.grid(alpha=0.3, axis="y")
    kinds = figure.axes[0].get_legend_handles_labels()
    figure.legend(*kinds, fontsize="small", loc="outside lower center", ncols=len(KINDS))
    return figure
