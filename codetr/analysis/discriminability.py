"""How well maps tell objects from background: the analysis behind the paper's Figures 2 and 4.

Encoder: of every level, the L2 norm of its channels, divided by its own largest value in the image,
is resized bilinearly to the image; the mean over levels is the map D in [0, 1] (Co-DETR,
arXiv 2211.12860, equation 7). Decoder: the same of its last cross-attention.

What the paper leaves open, and how it is read here:

- IoF is the share of the foreground where D > S (equation 8). IoB, "computed in a similar way", is
  the share of the background where D > S. Foreground are the pixels whose centre is in a true box.
- S takes equal steps from 0 to 1, small ones: tokens that a layer norm leaves have nearly equal
  norms, so that D lies within a few hundredths of 1, and what counts are small differences. Both
  shares are means over images at equal S. An image that is all foreground or all background is left
  out.
- The area is that under IoF over IoB, with the point (1, 1) of S < 0: 1 for a map that is the
  foreground itself, 0.5 for one that knows nothing of it.
- The decoder's map: the weights of the queries matched with an object, given to the cells that they
  are interpolated from, summed over heads and points, each level resized to the image, summed, and
  divided by the largest value.
- The image is the one that the network gets, without padding.
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
from codetr.analysis.sampling import attention_map, require_samples, watched
from codetr.analysis.subject import Subject, boxes_px
from codetr.errors import UserError
from codetr.structures import Batch, Memory

PLACES = ("encoder", "decoder")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Of one image: ``iof`` and ``iob`` (T,) by threshold, None where it lacks one of foreground
    and background; ``picture`` uint8 (3, H, W), ``boxes`` (N, 4) xyxy in its pixels and ``map``
    (H, W), where it is shown.
    """

    curve: tuple[Tensor, Tensor] | None
    picture: Tensor | None = None
    boxes: Tensor | None = None
    map: Tensor | None = None


class Discriminability:
    """Maps ``of`` the ``encoder`` or of the ``decoder``'s cross-attention, in ``steps`` thresholds.

    Raises UserError for another place.
    """

    title = "discriminability"

    def __init__(self, of: str = "encoder", steps: int = 1001) -> None:
        if of not in PLACES:
            raise UserError(f"analysis.of={of}: give one of {', '.join(PLACES)}")
        if steps < 2:
            raise UserError(f"analysis.steps={steps}: give at least 2")
        self.of, self.steps = of, steps

    def look(self, subject: Subject, batch: Batch, shown: bool) -> Seen:
        """The curve of one image. Raises UserError where the decoder has no sampling points."""
        size: tuple[int, int] = tuple(batch.images.sizes[0].tolist())  # type: ignore[assignment]
        boxes = boxes_px(batch)
        found = self._map(subject, batch, size).float().cpu()
        foreground = inside_any(boxes.cpu(), size)
        seen = 0 < int(foreground.sum()) < foreground.numel()
        curve = threshold_curve(found, foreground, self.steps) if seen else None
        if not shown:
            return Seen(curve=curve)
        return Seen(curve=curve, picture=subject.picture(batch), boxes=boxes.cpu(), map=found)

    def _map(self, subject: Subject, batch: Batch, size: tuple[int, int]) -> Tensor:
        height, width = batch.images.pixels.shape[-2:]
        if self.of == "encoder":
            return energy_map(subject.model.encode(batch.images), (height, width), size)
        memory = subject.model.encode(batch.images)
        with watched(subject.detector) as seen:
            layers = subject.decode(memory).layers
        last = require_samples(seen, subject.source)[-1]
        (pairs,) = subject.match(layers[-1:], batch)
        return attention_map(last.of(pairs.query), (height, width), size)

    def report(self, found: Mapping[str, Sequence[Seen]]) -> Findings:
        """A curve and its area per checkpoint, and the maps over the images."""
        curves = {name: mean_curve([s.curve for s in seen]) for name, seen in found.items()}
        if not any(len(iof) for iof, _, _ in curves.values()):
            raise UserError("images: none of them has both objects and background: give more")
        rows = tuple((name, images, area(iof, iob)) for name, (iof, iob, images) in curves.items())
        thresholds = torch.linspace(0, 1, self.steps).tolist()
        return Findings(
            columns=("checkpoint", "images", "area"),
            rows=rows,
            notes=(
                f"IoF over IoB of the maps of the {self.of}, with thresholds from 0 to 1; the area "
                "is 1 for maps that are the foreground, 0.5 for maps that know nothing of it.",
                "Pictures show each map from its lowest (dark) to its highest value (bright).",
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
            label = f"{name}: {area(iof, iob):.3f}".replace("$", r"\$")
            axes.plot(*closed(iob, iof), color=colour(i), label=label)
        axes.set(xlabel="IoB", ylabel="IoF", xlim=(0, 1), ylim=(0, 1.01), aspect="equal")
        axes.set_title(f"discriminability of the {self.of}: area", fontsize="medium")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", loc="lower right")
        return figure

    def _pictures(self, found: Mapping[str, Sequence[Seen]]) -> dict[str, Figure]:
        rows = []
        for looks in zip(*found.values(), strict=True):
            if looks[0].picture is not None:
                rows.append([partial(draw_image, looks[0]), *(partial(draw_map, s) for s in looks)])
        return {"maps": pictures(["objects", *found], rows)} if rows else {}


def energy_map(memory: Memory, padded: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """D of the only image of a batch, (H, W) = ``size`` without padding, in [0, 1]; ``padded`` is
    the (height, width) that the maps span.
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


def inside_any(boxes: Tensor, size: tuple[int, int]) -> Tensor:
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


def closed(iob: Tensor, iof: Tensor) -> tuple[Tensor, Tensor]:
    """A curve with the point (1, 1) of thresholds below 0 in front."""
    one = iob.new_ones(1)
    return torch.cat([one, iob]), torch.cat([one, iof])


def area(iof: Tensor, iob: Tensor) -> float:
    """Under IoF over IoB, from (1, 1) to the last threshold, where both are 0."""
    x, y = closed(iob, iof)
    return torch.trapezoid(y.flip(0), x.flip(0)).item()


def draw_image(seen: Seen, axes: Axes) -> None:
    """An image with its true boxes."""
    assert seen.picture is not None
    axes.imshow(seen.picture.permute(1, 2, 0).numpy())
    _outline(seen, axes)


def draw_map(seen: Seen, axes: Axes) -> None:
    """The map over the image, with the true boxes."""
    assert seen.picture is not None
    assert seen.map is not None
    axes.imshow(seen.picture.float().mean(0).numpy(), cmap="gray", vmin=0, vmax=255)
    axes.imshow(seen.map.numpy(), cmap="inferno", alpha=0.75)  # from its lowest to its highest
    _outline(seen, axes)


def _outline(seen: Seen, axes: Axes) -> None:
    assert seen.boxes is not None
    for left, top, right, bottom in seen.boxes.tolist():
        place, extent = (left - 0.5, top - 0.5), (right - left, bottom - top)
        axes.add_patch(Rectangle(place, *extent, fill=False, edgecolor="cyan", linewidth=1))
