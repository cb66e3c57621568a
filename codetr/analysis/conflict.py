"""How different the places are that heads want the encoder to look at (Co-DETR, equation 9).

C(H_i(I)) is the Grad-CAM (arXiv 1610.02391) of head i on the encoder's maps of image I, and S_ij
the mean over images of KL(C_i || C_j). Rows and columns are the main branch and the auxiliary
heads. With one auxiliary head (K = 1) the conflict is the mean of S between it and the main branch;
with more, the mean of S over all pairs of auxiliary heads, which is the mean of the paper's
S_i = 1 / (2 (K - 1)) times the sum over j of S_ij + S_ji.

What the paper leaves open, and how it is read here:

- The score that is differentiated: of the main branch, the sum over queries of the highest class
  score in the last layer; of an auxiliary head, the sum of the scores of its detections, after its
  own NMS.
- Of each level: channels are weighted by their mean gradient over the level, summed, and what is
  negative becomes 0. Levels are resized to the finest one bilinearly and summed.
- For KL each map, divided by its largest value, becomes probabilities by a softmax over places: it
  sums to 1 and is nowhere 0, with no number to choose.
- An image in which a head finds nothing, so that there is nothing to differentiate, is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from codetr.analysis.findings import Cell, Findings, mean
from codetr.analysis.subject import Subject
from codetr.errors import UserError
from codetr.models.detectors.protocol import MAIN
from codetr.structures import Batch, Memory
from codetr.supervision.schemes import Collaborative

ALL = "all"


@dataclass(frozen=True)
class Maps:
    """Of one image: ``heads`` by name, and ``divergence`` (H, H) between their maps; None where a
    head finds nothing.
    """

    heads: tuple[str, ...]
    divergence: Tensor | None


class Conflict:
    """See the module."""

    title = "conflict"

    def look(self, subject: Subject, batch: Batch, shown: bool) -> Maps:
        """The divergences in one image. Raises UserError for a checkpoint without heads, or without
        their weights.
        """
        scheme = subject.trained(Collaborative)
        if not scheme.heads:
            raise UserError(f"{subject.source}: was trained without auxiliary heads: leave it out")
        memory = subject.model.encode(batch.images)
        maps = {}
        with torch.enable_grad():
            leaf = replace(memory, tokens=memory.tokens.detach().requires_grad_())
            scores = {MAIN: subject.decode(leaf).layers[-1].scores().amax(-1).sum()}
            pyramid = scheme.auxiliary_pyramid(leaf)
            for name in scheme.heads:
                (found,) = scheme.head(name).predict(pyramid, batch.images)
                scores[name] = found.scores.sum()
            for name, score in scores.items():
                if not score.requires_grad:
                    return Maps(tuple(scores), None)
                (gradient,) = torch.autograd.grad(score, leaf.tokens, retain_graph=True)
                maps[name] = grad_cam(memory, gradient)
        probabilities = torch.stack([as_probabilities(m) for m in maps.values()])
        return Maps(tuple(maps), divergences(probabilities).cpu())

    def report(self, found: Mapping[str, Sequence[Maps]]) -> Findings:
        """The matrix of every checkpoint, and its mean over the number of auxiliary heads K."""
        rows: list[tuple[Cell, ...]] = []
        matrices: dict[str, tuple[tuple[str, ...], Tensor]] = {}
        for name, seen in found.items():
            known = [maps.divergence for maps in seen if maps.divergence is not None]
            if not known:
                raise UserError(f"images: in none of them every head of {name} finds an object")
            heads, matrix = seen[0].heads, torch.stack(known).double().mean(0)
            matrices[name] = heads, matrix
            rows += [
                (name, a, b, len(heads) - 1, len(known), matrix[i, j].item())
                for i, a in enumerate(heads)
                for j, b in enumerate(heads)
                if i != j
            ]
            rows.append((name, ALL, ALL, len(heads) - 1, len(known), conflict(matrix)))
        return Findings(
            columns=("checkpoint", "head", "of", "K", "images", "KL"),
            rows=tuple(rows),
            notes=(
                "KL divergence of the Grad-CAM of one head from that of another, on the encoder's "
                "maps; all: the mean among auxiliary heads, with one of them that between it and "
                "the main branch.",
            ),
            figures={"matrices": _figure(matrices)},
        )


def grad_cam(memory: Memory, gradient: Tensor) -> Tensor:
    """(H, W) of the finest level, of the only image of a batch; ``gradient`` (1, S, C) of a score
    with respect to the memory's tokens.
    """
    finest = memory.shapes[0]
    total = gradient.new_zeros(finest)
    start = 0
    for height, width in memory.shapes:
        part = slice(start, start + height * width)
        start += height * width
        weights = gradient[0, part].mean(dim=0)
        cam = (memory.tokens[0, part] @ weights).relu().view(1, 1, height, width)
        resized = F.interpolate(cam, size=finest, mode="bilinear", align_corners=False)
        total = total + resized[0, 0]
    return total.detach()


def as_probabilities(cam: Tensor) -> Tensor:
    """(n,) float64 that sum to 1, of a map (H, W) without negative values; even where it is 0."""
    values = cam.double().flatten()
    return (values / values.max().clamp_min(torch.finfo(values.dtype).tiny)).softmax(0)


def divergences(probabilities: Tensor) -> Tensor:
    """(H, H) KL(i || j) of (H, n)."""
    logs = probabilities.log()
    return (probabilities[:, None] * (logs[:, None] - logs[None])).sum(-1)


def conflict(matrix: Tensor) -> float | None:
    """Of (1 + K, 1 + K) divergences, the main branch first: the mean over pairs of auxiliary heads,
    of the only one and the main branch where K is 1.
    """
    among = matrix if len(matrix) == 2 else matrix[1:, 1:]
    off = ~torch.eye(len(among), dtype=torch.bool)
    return mean(among[off].tolist())


def _figure(matrices: Mapping[str, tuple[tuple[str, ...], Tensor]]) -> Figure:
    """A matrix per checkpoint, and the conflict over K."""
    columns = len(matrices) + 1
    figure = Figure(figsize=(3.6 * columns, 3.6), layout="constrained")
    *grids, curve = figure.subplots(1, columns)
    highest = max(matrix.max().item() for _, matrix in matrices.values())
    for axes, (name, (heads, matrix)) in zip(grids, matrices.items(), strict=True):
        _matrix(axes, name, heads, matrix, highest)
    for name, (heads, matrix) in matrices.items():
        value = conflict(matrix)
        if value is not None:
            curve.plot(len(heads) - 1, value, "o", color="tab:blue")
            curve.annotate(
                name.replace("$", r"\$"), (len(heads) - 1, value), xytext=(4, 4),
                textcoords="offset points", fontsize="small",
            )  # fmt: skip
    most = max(len(heads) - 1 for heads, _ in matrices.values())
    curve.set_xticks(range(1, most + 1))
    curve.set(xlabel="K", xlim=(0.5, most + 0.7), ylim=(0, 1.15 * highest or None))
    curve.set_title("mean KL among heads", fontsize="medium")
    curve.grid(alpha=0.3)
    return figure


def _matrix(axes: Axes, name: str, heads: Sequence[str], matrix: Tensor, highest: float) -> None:
    axes.imshow(matrix.numpy(), cmap="Blues", vmin=0, vmax=highest)
    for i in range(len(heads)):
        for j in range(len(heads)):
            value = matrix[i, j].item()
            ink = "white" if value > 0.5 * highest else "black"
            axes.text(j, i, f"{value:.4f}", ha="center", va="center", color=ink, fontsize=8)
    axes.set_xticks(range(len(heads)), heads, rotation=30, ha="right")
    axes.set_yticks(range(len(heads)), heads)
    axes.set_title(name.replace("$", r"\$"), fontsize="medium")
