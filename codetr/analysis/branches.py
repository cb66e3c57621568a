"""AP of the main branch and of the auxiliary heads on the same encoder (Co-DETR, Table 11).

Heads suppress duplicates by their own NMS. AP is measured on the analysed images; ``images=null``
analyses all of them and gives the AP of ``eval.py evaluation.branch=NAME`` for every branch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.figure import Figure
from omegaconf import DictConfig

from codetr.analysis.findings import Findings, colour
from codetr.analysis.subject import Subject
from codetr.checkpoints.trusted import build_part
from codetr.evaluation import CocoEvaluator
from codetr.evaluation.figures import plain
from codetr.models.detectors.protocol import MAIN
from codetr.structures import Batch, Detections, ImageInfo
from codetr.supervision.schemes import Collaborative
from codetr.training.branches import AuxiliaryBranch, Branch, MainBranch
from codetr.training.evaluators import build_evaluator

METRICS = ("AP", "AP50", "AP75")


@dataclass(frozen=True, kw_only=True)
class ImageResult:
    """Result for one image: the detections of every branch in pixels of the original image;
    ``evaluator`` builds the evaluator of a branch from its name.
    """

    info: ImageInfo
    detections: Mapping[str, Detections]
    evaluator: Callable[[str], CocoEvaluator]


class Branches:
    """See the module."""

    title = "branches"

    def analyse_image(self, subject: Subject, batch: Batch, with_picture: bool) -> ImageResult:
        """Detections of every branch. Raises UserError if the file has no weights of a head."""
        detections = {
            name: branch(batch)[0].to("cpu") for name, branch in branches_of(subject).items()
        }
        return ImageResult(
            info=batch.infos[0],
            detections=detections,
            evaluator=partial(branch_evaluator, subject),
        )

    def report(self, found: Mapping[str, Sequence[ImageResult]]) -> Findings:
        """AP by checkpoint and branch."""
        measured = {
            (name, branch): metrics
            for name, seen in found.items()
            for branch, metrics in measure(seen).items()
        }
        rows = tuple(
            (*key, *(metrics.get(metric) for metric in METRICS))
            for key, metrics in measured.items()
        )
        return Findings(
            columns=("checkpoint", "branch", *METRICS),
            rows=rows,
            notes=("AP of every branch on the analysed images.",),
            figures={"bars": _bars({k: m.get("AP") for k, m in measured.items()})},
        )


def branches_of(subject: Subject) -> dict[str, Branch]:
    """The main branch, and the auxiliary heads if there are any."""
    config = subject.config.evaluation.postprocess
    branches: dict[str, Branch] = {
        MAIN: MainBranch(subject.detector, build_part(config, subject.source))
    }
    if any(isinstance(scheme, Collaborative) for scheme in subject.schemes.values()):
        scheme = subject.trained_scheme(Collaborative)
        for name in scheme.heads:
            branches[name] = AuxiliaryBranch(subject.detector, scheme, name)
    return branches


def branch_evaluator(subject: Subject, branch: str) -> CocoEvaluator:
    """The evaluator for the boxes of a branch."""
    config: DictConfig = subject.config.copy()
    config.evaluation.branch, config.evaluation.masks = branch, False
    annotations = subject.data.val_annotations
    return build_evaluator(config, annotations, subject.classes, subject.source)


def measure(seen: Sequence[ImageResult]) -> dict[str, dict[str, float]]:
    """The metrics of every branch."""
    measured = {}
    for branch in seen[0].detections if seen else ():
        evaluator = seen[0].evaluator(branch)
        for one in seen:
            evaluator.update((one.detections[branch],), (one.info,))
        measured[branch] = evaluator.compute()
    return measured


def _bars(values: Mapping[tuple[str, str], float | None]) -> Figure:
    """A bar chart of AP with a group of bars per checkpoint."""
    names = list(dict.fromkeys(name for name, _ in values))
    branches = list(dict.fromkeys(branch for _, branch in values))
    figure = Figure(figsize=(max(5.4, 1.2 * len(values) + 1), 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(len(branches), 1)
    for i, branch in enumerate(branches):
        own = [(k, values.get((name, branch))) for k, name in enumerate(names)]
        known = [(k, value) for k, value in own if value is not None]
        places = np.array([k for k, _ in known]) + width * (i - (len(branches) - 1) / 2)
        bars = axes.bar(
            places, [value for _, value in known], 0.95 * width, color=colour(i), label=branch
        )
        axes.bar_label(bars, fmt="%.3f", fontsize="x-small")
    axes.set_xticks(range(len(names)), [plain(name) for name in names])
    axes.set(ylabel="AP", xlim=(-0.5, len(names) - 0.5))
    axes.grid(alpha=0.3, axis="y")
    figure.legend(fontsize="small", loc="outside right upper")
    return figure
