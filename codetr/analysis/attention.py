"""Where the queries of a deformable decoder look: sampling points of its cross-attention.

For each query that a layer's one-to-one matching assigns to an object: the share of its attention
weight, over heads, levels and points, that lies in the object's true box. The pictures show the
sampling points of the last layer. ``attention_of_detection`` gives those of a single detection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from codetr.analysis.findings import Findings, colour, mean, pictures
from codetr.analysis.sampling import record_samples, require_samples, share_inside
from codetr.analysis.subject import Subject, boxes_px, decode_main
from codetr.data.sample import as_sample
from codetr.evaluation.figures import plain
from codetr.evaluation.postprocess import in_original_pixels
from codetr.inference.finder import DetectorFinder
from codetr.inference.predictor import Predictor
from codetr.models.detectors.protocol import Detector
from codetr.structures import Batch, Detections, Predictions

LARGEST = 60.0
"""Area of the largest drawn point, in square points; areas are proportional to weights."""
LARGEST_SIDE, DPI = 800, 100
"""Longer side of a stand-alone picture in pixels, and its resolution."""
SAME_BOX = 0.01
"""Tolerance in pixels when the same box comes from two devices or batch sizes."""


@dataclass(frozen=True, kw_only=True)
class ImageResult:
    """Result for one image: ``shares`` by layer with cross-attention, NaN for an image without
    objects. With a picture: ``picture`` uint8 (3, H, W), and in its pixels the objects' ``boxes``
    (N, 4) xyxy and the ``points`` (N, S, 2) of their queries with ``weights`` (N, S).
    """

    shares: tuple[float, ...]
    picture: Tensor | None = None
    boxes: Tensor | None = None
    points: Tensor | None = None
    weights: Tensor | None = None


class Attention:
    """See the module; draws the points of at most ``objects`` objects per image."""

    title = "attention"

    def __init__(self, objects: int = 5) -> None:
        self.objects = objects

    def analyse_image(self, subject: Subject, batch: Batch, with_picture: bool) -> ImageResult:
        """Attention shares of one image. Raises UserError if the decoder has no sampling points."""
        memory = subject.model.encode(batch.images)
        with record_samples(subject.detector) as seen:
            layers = subject.decode(memory).layers
        samples = require_samples(seen, subject.source)
        # ViDT predicts once more, before its first layer.
        matched = subject.match(layers[-len(samples) :], batch)
        height, width = batch.images.pixels.shape[-2:]
        extent = torch.tensor([width, height], device=subject.device)
        boxes = boxes_px(batch)
        shares = [
            share_inside(one.of(pairs.query), boxes[pairs.target] / extent.repeat(2))
            for one, pairs in zip(samples, matched, strict=True)
        ]
        means = tuple(share.mean().item() for share in shares)
        if not with_picture:
            return ImageResult(shares=means)
        pairs = matched[-1]
        last = samples[-1].of(pairs.query[: self.objects])
        return ImageResult(
            shares=means,
            picture=subject.picture(batch),
            boxes=boxes[pairs.target[: self.objects]].cpu(),
            points=(last.locations[0].flatten(1, 3) * extent).cpu(),
            weights=last.weights[0].flatten(1).cpu(),
        )

    def report(self, found: Mapping[str, Sequence[ImageResult]]) -> Findings:
        """Shares by layer, and pictures of the sampling points."""
        shares = {
            name: [mean(values) for values in zip(*(s.shares for s in seen), strict=True)]
            for name, seen in found.items()
        }
        rows = tuple(
            (name, f"layer{layer}", share)
            for name, layers in shares.items()
            for layer, share in enumerate(layers)
        )
        shown = []
        for looks in zip(*found.values(), strict=True):
            if looks[0].picture is not None:
                shown.append([partial(draw_points, look) for look in looks])
        return Findings(
            columns=("checkpoint", "layer", "share inside"),
            rows=rows,
            notes=(
                "Share of a query's cross-attention weight that lies in the true box of the object "
                "it is matched with.",
            ),
            figures={
                "curves": _figure(shares),
                **({"points": pictures(list(found), shown)} if shown else {}),
            },
        )


@torch.no_grad()
def attention_of_detection(predictor: Predictor, image: Tensor, chosen: Detections) -> ImageResult:
    """The attention of the query behind one detection: ``chosen`` (of length 1) was predicted by
    the main branch of ``predictor`` in the uint8 ``image`` (3, H, W). Everything is in pixels of
    that image.

    Raises UserError if the decoder has no sampling points.
    """
    finder = predictor.finder
    assert isinstance(finder, DetectorFinder), "the predictor has a single view"
    detector: Detector = predictor.detector  # type: ignore[assignment]
    batch = finder.collate([finder.resize(as_sample(image))]).to(finder.device)
    memory = detector.encode(batch.images)
    with record_samples(predictor.detector) as seen:
        decoded = decode_main(detector, memory)
    samples = require_samples(seen, "the checkpoint")
    query = query_of(chosen, decoded.layers[-1], batch)
    scale = torch.tensor(batch.infos[0].scale, device=finder.device)
    height, width = batch.images.pixels.shape[-2:]
    extent = torch.tensor([width, height], device=finder.device) / scale
    box = chosen.boxes_xyxy_px.to(extent)
    looks = [one.of(query) for one in samples]
    return ImageResult(
        shares=tuple(share_inside(one, box / extent.repeat(2)).item() for one in looks),
        picture=image,
        boxes=box.cpu(),
        points=(looks[-1].locations[0].flatten(1, 3) * extent).cpu(),
        weights=looks[-1].weights[0].flatten(1).cpu(),
    )


def query_of(chosen: Detections, last: Predictions, batch: Batch) -> Tensor:
    """(1,) index of the query behind one detection of the only image of ``batch``: the query with
    the same box, and of several, the one with the highest score for the class. Boxes are compared,
    not scores, since soft suppression lowers scores but leaves boxes unchanged.
    """
    boxes = in_original_pixels(last.boxes, batch.images.sizes, batch.infos)[0]
    distance = (boxes - chosen.boxes_xyxy_px.to(boxes)).abs().amax(-1)
    scores = last.scores()[0, :, chosen.labels[0]]
    same = distance <= distance.min() + SAME_BOX
    return scores.masked_fill(~same, -1.0).argmax()[None]


def attention_picture(seen: ImageResult) -> Image.Image:
    """``draw_points`` as a stand-alone image whose longer side is ``LARGEST_SIDE`` pixels."""
    assert seen.picture is not None
    height, width = seen.picture.shape[-2:]
    inches = LARGEST_SIDE / DPI / max(height, width)
    figure = Figure(figsize=(width * inches, height * inches), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    draw_points(seen, axes)
    axes.set_axis_off()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def draw_points(seen: ImageResult, axes: Axes) -> None:
    """Draw the image in grey, and the box of every object and the points of its query in one
    colour per object.
    """
    assert seen.picture is not None
    assert seen.boxes is not None
    assert seen.points is not None
    assert seen.weights is not None
    height, width = seen.picture.shape[-2:]
    axes.imshow(seen.picture.float().mean(0).numpy(), cmap="gray", vmin=0, vmax=400)
    rows = zip(seen.boxes.tolist(), seen.points, seen.weights, strict=True)
    for i, ((left, top, right, bottom), points, weights) in enumerate(rows):
        place, extent = (left - 0.5, top - 0.5), (right - left, bottom - top)
        axes.add_patch(Rectangle(place, *extent, fill=False, edgecolor=colour(i), linewidth=1.5))
        x, y = (points - 0.5).unbind(-1)
        sizes = LARGEST * weights / weights.max()
        axes.scatter(x, y, s=sizes, color=colour(i), alpha=0.7, edgecolors="black", lw=0.3)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _figure(shares: Mapping[str, Sequence[float | None]]) -> Figure:
    figure = Figure(figsize=(5.4, 4), layout="constrained")
    axes = figure.subplots()
    for i, (name, layers) in enumerate(shares.items()):
        heights = [float("nan") if share is None else share for share in layers]
        axes.plot(heights, "o-", color=colour(i), label=plain(name))
    axes.set(xlabel="decoder layer", ylabel="share of attention in the object's box", ylim=(0, 1))
    axes.set_xticks(range(max(map(len, shares.values()))))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="lower right")
    return figure
