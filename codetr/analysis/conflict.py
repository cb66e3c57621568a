"""How much the heads disagree about where the encoder should look (Co-DETR, equation 9).

C(H_i(I)) is the Grad-CAM (arXiv 1610.02391) of head i on the encoder's maps of image I, and S_ij
the mean over images of KL(C_i || C_j). Rows and columns are the main branch and the auxiliary
heads. With one auxiliary head (K = 1) the conflict is the mean of S between it and the main branch;
with more, the mean of S over all pairs of auxiliary heads, which is the mean of the paper's
S_i = 1 / (2 (K - 1)) times the sum over j of S_ij + S_ji.

The paper leaves some details open. Our choices:

- The differentiated score is, for the main branch, the sum over queries of the highest class score
  in the last layer; for an auxiliary head, the sum of the scores of its detections after its NMS.
- At each level, channels are weighted by their mean gradient over the level and summed, and
  negative values are set to 0. Levels are resized bilinearly to the finest one and summed.
- For KL, each map is divided by its maximum and passed through a softmax over positions: it sums to
  1, is nowhere 0, and needs no further parameter.
- Images in which a head finds nothing are skipped, since there is nothing to differentiate.
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
from codetr.evaluation.figures import plain
from codetr.models.detectors.protocol import MAIN
from codetr.structures import Batch, Memory
from codetr.supervision.schemes import Collaborative

ALL = "all"


@dataclass(frozen=True)
class Maps:
    """Result for one image: names of the ``heads``, and ``divergence`` (H, H) between their maps,
    None if a head finds nothing.
    """

    heads: tuple[str, ...]
    divergence: Tensor | None


class Conflict:
    """See the module."""

    title = "conflict"

    def analyse_image(self, subject: Subject, batch: Batch, with_picture: bool) -> Maps:
        """The divergences in one image. Raises UserError for a checkpoint without auxiliary heads
        or without their weights.
        """
        scheme = subject.trained_scheme(Collaborative)
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
        probabilities = torch.stack([probabilities_of(m) for m in maps.values()])
        return Maps(tuple(maps), kl_divergences(probabilities).cpu())

    def report(self, found: Mapping[str, Sequence[Maps]]) -> Findings:
        """The matrix of every checkpoint, and its mean over the number of auxiliary heads K."""
        rows: list[tuple[Cell, ...]] = []
        matrices: dict[str, tuple[tuple[str, ...], Tensor]] = {}
        for name, seen in found.items():
            known = [maps.divergence for maps in seen if maps.divergence is not None]
            if not known:
                raise UserError(
                    f"images: in none of them does every head of {name} find an object: give more"
                )
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
                "KL divergence of one head's Grad-CAM from another's, on the encoder's maps; all: "
                "the mean over pairs of auxiliary heads or, with a single auxiliary head, of that "
                "head and the main branch.",
            ),
            figures={"matrices": _figure(matrices)},
        )


def grad_cam(memory: Memory, gradient: Tensor) -> Tensor:
    """Grad-CAM (H, W) at the finest level, for a batch of one image; ``gradient`` (1, S, C) of a
    score with respect to the memory's tokens.
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


def probabilities_of(cam: Tensor) -> Tensor:
    """(n,) float64 probabilities from a map (H, W) without negative values; uniform where the map
    is 0 everywhere.
    """
    values = cam.double().flatten()
    return (values / values.max().clamp_min(torch.finfo(values.dtype).tiny)).softmax(0)


def kl_divergences(probabilities: Tensor) -> Tensor:
    """(H, H) KL(i || j) between the rows of (H, n)."""
    logs = probabilities.log()
    return (probabilities[:, None] * (logs[:, None] - logs[None])).sum(-1)


def conflict(matrix: Tensor) -> float | None:
    """The conflict from divergences (1 + K, 1 + K), main branch first: the mean over pairs of
    auxiliary heads or, where K is 1, of the auxiliary head and the main branch.
    """
    among = matrix if len(matrix) == 2 else matrix[1:, 1:]
    off = ~torch.eye(len(among), dtype=torch.bool)
    return mean(among[off].tolist())


def _figure(matrices: Mapping[str, tuple[tuple[str, ...], Tensor]]) -> Figure:
    """A matrix per checkpoint, and a plot of the conflict over K."""
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
                plain(name), (len(heads) - 1, value), xytext=(4, 4),
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
    axes.set_title(plain(name), fontsize="medium")
