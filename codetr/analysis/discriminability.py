"""How well feature maps separate objects from background (Co-DETR, arXiv 2211.12860, Figures 2
and 4).

Encoder: at every level, the L2 norm over channels is divided by its maximum in the image and
resized bilinearly to the image; the mean over levels is the map D in [0, 1] (equation 7). Decoder:
the same for its last cross-attention.

The paper leaves some details open. Our choices:

- IoF is the share of the foreground where D > S (equation 8). IoB, "computed in a similar way", is
  the share of the background where D > S. A pixel is foreground if its centre is in a true box.
- S goes from 0 to 1 in small equal steps: tokens after a layer norm have nearly equal norms, so D
  lies within a few hundredths of 1 and small differences matter. Both shares are means over images
  at equal S. Images that are all foreground or all background are skipped.
- The area is that under the curve of IoF over IoB, including the point (1, 1) for S < 0: 1 for a
  map equal to the foreground, 0.5 for one that is independent of it.
- The decoder's map: the weights of the queries matched with an object are distributed to the cells
  that they are interpolated from and summed over heads and points; levels are resized to the image
  and summed, and the result is divided by its maximum.
- The image is the network's input without padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.nn import functional as F

from codetr.analysis.findings import Findings, colour, pictures
from codetr.analysis.sampling import attention_map, record_samples, require_samples
from codetr.analysis.subject import Subject, boxes_px
from codetr.errors import UserError
from codetr.evaluation.figures import plain
from codetr.structures import Batch, Memory

PLACES = ("encoder", "decoder")


@dataclass(frozen=True, kw_only=True)
class ImageResult:
    """Result for one image: ``curve``, IoF and IoB (T,) by threshold, None if the image lacks
    foreground or background. With a picture: ``picture`` uint8 (3, H, W), ``boxes`` (N, 4) xyxy in
    its pixels, and ``map`` (H, W).
    """

    curve: tuple[Tensor, Tensor] | None
    picture: Tensor | None = None
    boxes: Tensor | None = None
    map: Tensor | None = None


class Discriminability:
    """Analyses maps ``of`` the ``encoder``, or of the ``decoder``'s cross-attention, with ``steps``
    thresholds. Raises UserError for another value of ``of``.
    """

    title = "discriminability"

    def __init__(self, of: str = "encoder", steps: int = 1001) -> None:
        if of not in PLACES:
            raise UserError(f"analysis.of={of}: give one of {', '.join(PLACES)}")
        if steps < 2:
            raise UserError(f"analysis.steps={steps}: give at least 2")
        self.of, self.steps = of, steps

    def analyse_image(self, subject: Subject, batch: Batch, with_picture: bool) -> ImageResult:
        """The curve of one image. Raises UserError if the decoder has no sampling points."""
        size: tuple[int, int] = tuple(batch.images.sizes[0].tolist())  # type: ignore[assignment]
        boxes = boxes_px(batch)
        found = self._map(subject, batch, size).float().cpu()
        foreground = foreground_mask(boxes.cpu(), size)
        seen = 0 < int(foreground.sum()) < foreground.numel()
        curve = threshold_curve(found, foreground, self.steps) if seen else None
        if not with_picture:
            return ImageResult(curve=curve)
        return ImageResult(
            curve=curve, picture=subject.picture(batch), boxes=boxes.cpu(), map=found
        )

    def _map(self, subject: Subject, batch: Batch, size: tuple[int, int]) -> Tensor:
        height, width = batch.images.pixels.shape[-2:]
        if self.of == "encoder":
            return energy_map(subject.model.encode(batch.images), (height, width), size)
        memory = subject.model.encode(batch.images)
        with record_samples(subject.detector) as seen:
            layers = subject.decode(memory).layers
        last = require_samples(seen, subject.source)[-1]
        (pairs,) = subject.match(layers[-1:], batch)
        return attention_map(last.of(pairs.query), (height, width), size)

    def report(self, found: Mapping[str, Sequence[ImageResult]]) -> Findings:
        """A curve and its area per checkpoint, and the maps over the images."""
        curves = {name: mean_curve([s.curve for s in seen]) for name, seen in found.items()}
        if not any(len(iof) for iof, _, _ in curves.values()):
            raise UserError("images: none has both objects and background: give more")
        rows = tuple((name, images, area(iof, iob)) for name, (iof, iob, images) in curves.items())
        thresholds = torch.linspace(0, 1, self.steps).tolist()
        return Findings(
            columns=("checkpoint", "images", "area"),
            rows=rows,
            notes=(
                f"IoF over IoB of the maps of the {self.of}, with thresholds from 0 to 1; the area "
                "is 1 for maps equal to the foreground, 0.5 for maps independent of it.",
                "Pictures show each map from its minimum (dark) to its maximum (bright).",
            ),
            figures={"curves": self._curves(curves), **self._pictures(found)},
            series={
                "of": self.of,
                "thresholds": thresholds,
                "curves": {
                    name: {"IoF": iof.tolist(), "IoB": iob.tolist()}
                    for name, (iof, iob, _) in curves.items()
                },
            },
        )

    def _curves(self, curves: Mapping[str, tuple[Tensor, Tensor, int]]) -> Figure:
        figure = Figure(figsize=(5.4, 5), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
        for i, (name, (iof, iob, _)) in enumerate(curves.items()):
            label = plain(f"{name}: {area(iof, iob):.3f}")
            axes.plot(*with_corner(iob, iof), color=colour(i), label=label)
        axes.set(xlabel="IoB", ylabel="IoF", xlim=(0, 1), ylim=(0, 1.01), aspect="equal")
        axes.set_title(f"discriminability of the {self.of}: area", fontsize="medium")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", loc="lower right")
        return figure

    def _pictures(self, found: Mapping[str, Sequence[ImageResult]]) -> dict[str, Figure]:
        rows = []
        for looks in zip(*found.values(), strict=True):
            if looks[0].picture is not None:
                rows.append([partial(draw_image, looks[0]), *(partial(draw_map, s) for s in looks)])
        return {"maps": pictures(["objects", *found], rows)} if rows else {}


def energy_map(memory: Memory, padded: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The map D in [0, 1] for a batch of one image, (H, W) = ``size`` without padding; ``padded``
    is the (height, width) that the feature maps cover.
    """
    voids = memory.padding[0].split([h * w for h, w in memory.shapes])
    levels = []
    for found, void in zip(memory.pyramid().maps, voids, strict=True):
        norm = found[0].float().norm(dim=0).masked_fill(void.view(found.shape[-2:]), 0.0)
        norm = norm / norm.max().clamp_min(torch.finfo(norm.dtype).tiny)
        levels.append(
            F.interpolate(norm[None, None], size=padded, mode="bilinear", align_corners=False)
        )
    return torch.stack(levels).mean(0)[0, 0, : size[0], : size[1]]


def foreground_mask(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W) bool: whether the centre of each pixel is in one of ``boxes`` (N, 4), xyxy pixels."""
    y, x = (torch.arange(n, dtype=boxes.dtype) + 0.5 for n in size)
    left, top, right, bottom = boxes.unbind(-1)
    columns = (x >= left[:, None]) & (x < right[:, None])
    rows = (y >= top[:, None]) & (y < bottom[:, None])
    return (rows.float().T @ columns.float()) > 0


def threshold_curve(found: Tensor, foreground: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """IoF and IoB (T,) of a map (H, W) in [0, 1] at T equal steps of the threshold from 0 to 1;
    ``foreground`` (H, W) bool has pixels of both kinds.
    """
    thresholds = torch.linspace(0, 1, steps, dtype=found.dtype)

    def share(values: Tensor) -> Tensor:
        below = torch.searchsorted(values.sort().values, thresholds, right=True)
        return 1 - below.double() / len(values)

    return share(found[foreground]), share(found[~foreground])


def mean_curve(
    curves: Sequence[tuple[Tensor, Tensor] | None],
) -> tuple[Tensor, Tensor, int]:
    """Mean IoF and IoB (T,) over the images that have curves, and the number of these."""
    known = [curve for curve in curves if curve is not None]
    if not known:
        return torch.zeros(0), torch.zeros(0), 0
    iof, iob = (torch.stack(values).mean(0) for values in zip(*known, strict=True))
    return iof, iob, len(known)


def with_corner(iob: Tensor, iof: Tensor) -> tuple[Tensor, Tensor]:
    """The curve preceded by its corner (1, 1), the point for thresholds below 0."""
    one = iob.new_ones(1)
    return torch.cat([one, iob]), torch.cat([one, iof])


def area(iof: Tensor, iob: Tensor) -> float:
    """Area under the curve of IoF over IoB, from (1, 1) to the last threshold, where both are 0."""
    x, y = with_corner(iob, iof)
    return torch.trapezoid(y.flip(0), x.flip(0)).item()


def draw_image(seen: ImageResult, axes: Axes) -> None:
    """Draw an image with its true boxes."""
    assert seen.picture is not None
    axes.imshow(seen.picture.permute(1, 2, 0).numpy())
    _outline(seen, axes)


def draw_map(seen: ImageResult, axes: Axes) -> None:
    """Draw the map over the image, with the true boxes."""
    assert seen.picture is not None
    assert seen.map is not None
    axes.imshow(seen.picture.float().mean(0).numpy(), cmap="gray", vmin=0, vmax=255)
    axes.imshow(seen.map.numpy(), cmap="inferno", alpha=0.75)
    _outline(seen, axes)


def _outline(seen: ImageResult, axes: Axes) -> None:
    assert seen.boxes is not None
    for left, top, right, bottom in seen.boxes.tolist():
        place, extent = (left - 0.5, top - 0.5), (right - left, bottom - top)
        axes.add_patch(Rectangle(place, *extent, fill=False, edgecolor="cyan", linewidth=1))
