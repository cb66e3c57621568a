"""Draw the figures of docs/method.md: ``python docs/make_figures.py``.

Scenes, anchors, assignments, noise, masks and sampling points are computed by the package.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from codetr.boxes import cxcywh_to_xyxy
from codetr.data.scenes import SceneStyle, render_scene
from codetr.models.detectors.grouping import attention_mask
from codetr.models.layers import DeformableAttention
from codetr.structures import Pyramid, Queries, QueryGroup, Targets
from codetr.supervision.assigners.atss import AtssAssigner
from codetr.supervision.aux_heads.atss import GRID
from codetr.supervision.criteria import QualityClassification, SetCriterion
from codetr.supervision.schemes import Denoising

BLUE, ORANGE, GREEN, RED, GREY = "#3566a8", "#d9822b", "#3a8f5c", "#c23b3b", "#8a8a8a"
TINTS = {BLUE: "#e3ecf7", ORANGE: "#fbeedd", GREEN: "#e2f2e8", GREY: "#f1f1f1"}
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "svg.hashsalt": "codetr",
}
SCENE_HW = (224, 280)


def main() -> None:
    """Draw all figures into a folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Path(__file__).parent / "images"
    parser.add_argument("--out", type=Path, default=default, help="default: docs/images")
    folder: Path = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    for path in draw_all(folder):
        print(f"wrote {path}")


def draw_all(folder: Path) -> list[Path]:
    """Draw every figure as a PNG; returns the paths."""
    figures = {
        "method_training": training_figure,
        "method_assignment": assignment_figure,
        "method_mask": mask_figure,
        "method_denoising": denoising_figure,
        "method_deformable": deformable_figure,
        "method_schemes": schemes_figure,
    }
    paths = []
    with mpl.rc_context(STYLE):
        for name, draw in figures.items():
            paths.append(folder / f"{name}.png")
            draw().savefig(paths[-1], dpi=130, metadata={"Software": None})
    return paths


def training_figure() -> Figure:
    """The detector, and what stands beside it in training."""
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(0, 96), ylim=(0, 42))
    axes.axis("off")
    axes.add_patch(Rectangle((1, 1), 94, 14.5, color="#eef3fa", zorder=0))
    axes.text(2, 13.2, "detector: all that is deployed", color=BLUE, weight="bold")
    axes.text(2, 39.5, "schemes: in training alone", color=ORANGE, weight="bold")
    deployed = {"images": 2, "backbone": 15, "neck": 30, "encoder": 42, "memory": 56}
    for name, x in deployed.items():
        _box(axes, (x, 4), (10, 6), name, GREY if name in ("images", "memory") else BLUE)
    _box(axes, (69, 4), (11, 6), "decoder", BLUE)
    _box(axes, (84, 4), (10, 6), "predictions", GREY)
    ends = [*deployed.values(), 69, 84]
    for start, end in pairwise(ends):
        _arrow(axes, (start + (11 if start == 69 else 10), 7), (end, 7))
    _box(axes, (38, 26), (17, 8), "auxiliary heads\nATSS, Faster R-CNN, ...", ORANGE)
    _box(axes, (60, 19.5), (17, 6), "positive queries", ORANGE)
    _box(axes, (60, 29), (17, 6), "denoising queries", ORANGE)
    _box(axes, (16, 27), (15, 6), "ground truth", GREY)
    _box(axes, (81, 24), (14, 8), "losses of\nall layers and\ngroups", ORANGE)
    _arrow(axes, (61, 10), (47, 26), "maps and one\ncoarser level", (41.5, 18.5))
    _arrow(axes, (31, 30), (38, 30), "assign", (34.5, 31.5))
    _arrow(axes, (55, 28), (60, 23), "boxes", (57.5, 27.3))
    _arrow(axes, (68.5, 19.5), (73, 10))
    axes.add_patch(
        FancyArrowPatch(
            (77, 31),
            (78.5, 10),
            connectionstyle="arc3,rad=-0.25",
            arrowstyle="-|>",
            mutation_scale=10,
            color="#555555",
        )
    )
    _arrow(axes, (89, 10), (88, 24))
    axes.add_patch(
        FancyArrowPatch(
            (24, 33),
            (60, 34),
            connectionstyle="arc3,rad=-0.22",
            arrowstyle="-|>",
            mutation_scale=10,
            color="#555555",
        )
    )
    axes.text(42, 39.2, "add noise", ha="center", fontsize=8, color="#555555")
    return figure


def _box(
    axes: Axes, corner: tuple[float, float], size: tuple[float, float], text: str, colour: str
) -> None:
    axes.add_patch(
        FancyBboxPatch(
            corner,
            *size,
            boxstyle="round,pad=0,rounding_size=1",
            edgecolor=colour,
            facecolor=TINTS.get(colour, "white"),
            linewidth=1.4,
        )
    )
    centre = (corner[0] + size[0] / 2, corner[1] + size[1] / 2)
    axes.text(*centre, text, ha="center", va="center")


def _arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    text: str = "",
    at: tuple[float, float] = (0, 0),
) -> None:
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=10, color="#555555", shrinkA=0, shrinkB=1
        )
    )
    if text:
        axes.text(*at, text, ha="center", va="center", fontsize=8, color="#555555")


def scene() -> tuple[np.ndarray, np.ndarray]:
    """A built-in scene (H, W, 3) and its boxes (N, 4) xyxy in pixels."""
    pixels, objects = render_scene(np.random.default_rng(11), *SCENE_HW, SceneStyle())
    return pixels, np.array([item.box for item in objects])


def assignment_figure() -> Figure:
    """One query per object, and the anchors that ATSS makes positive."""
    pixels, boxes = scene()
    height, width = SCENE_HW
    strides = (8, 16, 32, 64)
    maps = tuple(torch.zeros(1, 1, -(-height // s), -(-width // s)) for s in strides)
    anchors = GRID(Pyramid(maps=maps, strides=strides), torch.tensor([[height, width]]))
    wanted = torch.from_numpy(boxes).float()
    assigned = AtssAssigner()(anchors.boxes, anchors.level_sizes, wanted, anchors.usable[0])
    figure = Figure(figsize=(9, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    _show(left, pixels, boxes, f"one to one: {len(boxes)} positive queries, one per object")
    left.scatter(*centres.T, s=45, color=RED, edgecolor="white", zorder=3)
    positive = (anchors.boxes[assigned >= 0, :2] + anchors.boxes[assigned >= 0, 2:]) / 2
    level = torch.arange(4).repeat_interleave(torch.tensor(anchors.level_sizes))[assigned >= 0]
    _show(right, pixels, boxes, f"one to many: {len(positive)} positive anchors of ATSS")
    for index, colour in enumerate((ORANGE, BLUE, GREEN, RED)):
        points = positive[level == index]
        if len(points):
            label = f"stride {strides[index]}"
            right.scatter(
                *points.numpy().T, s=26, color=colour, edgecolor="white", label=label, zorder=3
            )
    right.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def _show(axes: Axes, pixels: np.ndarray, boxes: np.ndarray, title: str) -> None:
    axes.imshow(pixels)
    for x0, y0, x1, y1 in boxes:
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color="white", lw=1.6))
    axes.set_title(title)
    axes.axis("off")


def _group(name: str, count: int, **more: object) -> QueryGroup:
    queries = Queries(content=torch.zeros(1, count, 4), anchors=torch.zeros(1, count, 4))
    return QueryGroup(name=name, queries=queries, **more)  # type: ignore[arg-type]


def mask_figure() -> Figure:
    """Which query may attend to which, as the detector computes it."""
    index = torch.arange(3).repeat_interleave(6)
    groups = [
        _group("main", 20),
        _group("denoising", 18, blocked=index[:, None] != index, sees=("main",)),
        _group("positive_atss", 12),
        _group("positive_rcnn", 12),
    ]
    allowed = attention_mask(groups)
    assert allowed is not None
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(allowed.numpy(), cmap=mpl.colors.ListedColormap(["#ffffff", BLUE]), vmin=0, vmax=1)
    ends = np.cumsum([len(group) for group in groups])
    middles = ends - np.array([len(group) for group in groups]) / 2 - 0.5
    for end in ends[:-1]:
        axes.axhline(end - 0.5, color=GREY, lw=0.8)
        axes.axvline(end - 0.5, color=GREY, lw=0.8)
    names = [group.name for group in groups]
    axes.set_xticks(middles, [name.replace("_", "\n") for name in names])
    axes.set_yticks(middles, names)
    axes.tick_params(length=0)
    axes.set_xlabel("may attend to (blue)")
    axes.set_ylabel("query")
    return figure


def denoising_figure() -> Figure:
    """A box, and the positive and negative queries that are made of it."""
    torch.manual_seed(3)
    box = torch.tensor([[0.5, 0.5, 0.36, 0.3]])
    target = Targets(
        boxes=box,
        labels=torch.zeros(1, dtype=torch.int64),
        weights=torch.ones(1),
        size=torch.tensor([100.0, 100.0]),
    )
    scheme = Denoising(SetCriterion(QualityClassification()), num_classes=3, dim=8)
    noise = scheme.draw(1, 12, 1, like=box)
    made = scheme.group([target], noise).queries.anchors.detach()
    corners = cxcywh_to_xyxy(made.reshape(12, 2, 4))
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    names = ("positive queries: reconstruct the box", "negative queries: background")
    for axes, kind, name, colour in zip(
        figure.subplots(1, 2), (0, 1), names, (GREEN, RED), strict=True
    ):
        for x0, y0, x1, y1 in corners[:, kind].tolist():
            axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color=colour, lw=0.9))
        x0, y0, x1, y1 = cxcywh_to_xyxy(box)[0].tolist()
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color="black", lw=2.2))
        axes.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], title=name, aspect="equal")
    return figure


def deformable_figure() -> Figure:
    """Where a query looks at first, on three levels: the module's initial sampling points."""
    shapes = ((14, 18), (7, 9), (4, 5))
    attention = DeformableAttention(dim=64, heads=8, levels=3, points=4)
    anchor = torch.tensor([0.46, 0.5, 0.42, 0.5])
    offsets = attention.sampling_offsets.bias[None, None]
    found = attention._locations(attention.frame(anchor.expand(1, 1, 3, 4), shapes), offsets)[
        0, 0
    ].detach()
    figure = Figure(figsize=(9, 2.9), layout="constrained")
    colours = mpl.colormaps["tab10"].colors
    for level, axes in enumerate(figure.subplots(1, 3)):
        height, width = shapes[level]
        for y in range(height + 1):
            axes.axhline(y, color="#dddddd", lw=0.8, zorder=0)
        for x in range(width + 1):
            axes.axvline(x, color="#dddddd", lw=0.8, zorder=0)
        scale = np.array([width, height])
        for head in range(8):
            points = found[head, level].numpy() * scale
            axes.scatter(*points.T, s=14, color=colours[head], zorder=3)
        corner = (anchor[:2] - anchor[2:] / 2).numpy() * scale
        extent = anchor[2:].numpy() * scale
        axes.add_patch(Rectangle(corner, *extent, fill=False, color="black", lw=1.6))
        axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], aspect="equal")
        axes.set_title(f"level {level}: {height} x {width} cells")
    return figure


def schemes_figure() -> Figure:
    """Which queries each scheme ties to two objects."""
    figure = Figure(figsize=(10.4, 4.6), layout="constrained")
    one = {0: (1,), 1: (4,)}
    panels = (
        ("one_to_one", [(BLUE, 6, one)]),
        ("denoising", [(BLUE, 6, one), (ORANGE, 4, {0: (0, 2), 1: (1, 3)})]),
        ("collaborative", [(BLUE, 6, one), (ORANGE, 5, {0: (0, 1, 2), 1: (3, 4)})]),
        ("mixed", [(BLUE, 6, {0: (0, 1, 2), 1: (4, 5)})]),
        ("hybrid", [(BLUE, 6, one), (ORANGE, 7, {0: (0, 1, 4), 1: (2, 3, 6)})]),
        ("group", [(BLUE, 6, one), (ORANGE, 6, {0: (2,), 1: (5,)})]),
    )
    axes = list(figure.subplots(2, 4).flat)
    for panel, (name, rows) in zip(axes, panels, strict=False):
        _panel(panel, name, rows)
    _panel(axes[6], "teacher", [(BLUE, 6, one)])
    for x, query in ((2.0, 0), (5.0, 4), (8.2, 5)):
        axes[6].plot((x, np.linspace(1, 9, 6)[query]), (4, 0), color=GREY, lw=1.3, ls="--")
        axes[6].scatter(x, 4, s=120, marker="s", color=GREY, zorder=3)
        axes[6].scatter(np.linspace(1, 9, 6)[query], 0, s=55, color=BLUE, zorder=3)
    axes[7].axis("off")
    return figure


def _panel(
    axes: Axes, name: str, groups: Sequence[tuple[str, int, dict[int, tuple[int, ...]]]]
) -> None:
    """Main queries below, others above, objects between them."""
    objects = {0: (3.0, 2.0), 1: (7.0, 2.0)}
    for y, (colour, count, pairs) in zip((0.0, 4.0), groups, strict=False):
        xs = np.linspace(1, 9, count)
        for target, queries in pairs.items():
            for query in queries:
                axes.plot(*zip((xs[query], y), objects[target], strict=True), color=colour, lw=1.3)
        taken = {query for queries in pairs.values() for query in queries}
        for i, x in enumerate(xs):
            face = colour if i in taken else "white"
            axes.scatter(x, y, s=55, color=face, edgecolor=colour, zorder=3)
    for place in objects.values():
        axes.scatter(*place, s=120, marker="s", color=GREEN, zorder=3)
    axes.set(xlim=(0, 10), ylim=(-0.8, 4.8))
    axes.set_title(name, family="DejaVu Sans Mono")
    axes.axis("off")


if __name__ == "__main__":
    main()
