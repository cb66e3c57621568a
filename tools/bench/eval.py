"""COCO metrics of many detections: the evaluator of the training against pycocotools.

Both get the same made-up detections in tensors, image by image, as a model gives them, and the
same annotation file. ``--baseline-images N`` compares on a part, since pycocotools is slow.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from codetr.classes import ClassList
from codetr.evaluation.coco import CocoEvaluator
from codetr.evaluation.metrics import MAX_DETECTIONS
from codetr.evaluation.report import coco_lines
from codetr.structures import ImageInfo
from tools.bench.detections import Scene, make_scene
from tools.bench.measure import in_turns, medians, peak_memory, ratio
from tools.bench.options import Common, option
from tools.bench.report import Table

CLASSES = 80


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """How much is evaluated."""

    repeats: int = option(1, "turns that count, after one to warm up")
    threads: int | None = option(1, "of PyTorch")
    memory: bool = option(True, "measure the peak of memory, in processes of their own")
    images: int = option(5000, "evaluated by ours")
    detections: int = option(300, "of an image")
    baseline_images: int = option(1000, "evaluated by pycocotools, and by ours to compare")


def run(options: Options) -> tuple[Table, ...]:
    """Time, memory and the twelve numbers."""
    part, whole = min(options.baseline_images, options.images), options.images
    with tempfile.TemporaryDirectory(prefix="codetr-bench-") as made:
        runs = {
            f"ours, {whole} images": (evaluate_ours, whole),
            f"ours, {part} images": (evaluate_ours, part),
            f"pycocotools, {part} images": (evaluate_pycocotools, part),
        }
        files = {n: _scene_file(Path(made), n, options.detections) for n in (whole, part)}
        paths = {
            n: _prepare(path, files[c], c, options.detections) for n, (path, c) in runs.items()
        }
        numbers: dict[str, Numbers] = {}

        def evaluate(name: str) -> None:
            numbers[name] = paths[name]()

        times = in_turns({name: partial(evaluate, name) for name in paths}, options.repeats)
        memory = {
            name: peak_memory(_prepare, path, files[count], count, options.detections) / 2**20
            for name, (path, count) in runs.items()
            if options.memory
        }
    ours, baseline = f"ours, {part} images", f"pycocotools, {part} images"
    seconds = medians(times)
    rows: dict[str, tuple[float | str, ...]] = {
        name: (seconds[name], memory.get(name, ""), f"{numbers[name]['AP']:.6f}") for name in runs
    }
    difference = max(
        abs(numbers[ours][n] - numbers[baseline][n]) for n in coco_lines(MAX_DETECTIONS)
    )
    rows[f"ours / pycocotools, {part} images"] = (
        ratio(times, ours, baseline),
        memory[ours] / memory[baseline] if memory else "",
        "",
    )
    return (
        Table(
            title=f"COCO metrics, {options.detections} detections per image, {CLASSES} classes",
            columns=("seconds", "peak MiB", "AP"),
            rows=rows,
            notes=(
                f"largest difference of the twelve numbers, {part} images: {difference:.1e}",
                "made-up boxes; peak beyond detections and ground truth in memory",
            ),
        ),
    )


def _scene_file(folder: Path, images: int, detections: int) -> Path:
    path = folder / f"{images}.json"
    path.write_text(json.dumps(make_scene(images, detections, CLASSES).truth))
    return path


Numbers = dict[str, float]
Evaluate = Callable[[Scene, Path], Numbers]


def _prepare(evaluate: Evaluate, path: Path, images: int, detections: int) -> Callable[[], Numbers]:
    return partial(evaluate, make_scene(images, detections, CLASSES), path)


def evaluate_ours(scene: Scene, path: Path) -> Numbers:
    """As validation in training does; the annotation file is read too."""
    numbers = tuple(range(1, CLASSES + 1))
    evaluator = CocoEvaluator(path, ClassList(names=tuple(map(str, numbers)), category_ids=numbers))
    for image, found in scene.found.items():
        info = ImageInfo(image_id=image, original_size=scene.size, scale=(1.0, 1.0), path="")
        evaluator.update([found], [info])
    return evaluator.compute()


def evaluate_pycocotools(scene: Scene, path: Path) -> Numbers:
    """As is usual: records of all detections, loaded as results."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        records: list[dict[str, Any]] = []
        for image, found in scene.found.items():
            xyxy = found.boxes_xyxy_px.double().numpy()
            boxes = np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1)
            rows = zip(boxes, found.scores.tolist(), found.labels.tolist(), strict=True)
            records += [
                {"image_id": image, "category_id": c + 1, "bbox": b.tolist(), "score": s}
                for b, s, c in rows
            ]
        evaluation = COCOeval(truth, truth.loadRes(records), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(coco_lines(MAX_DETECTIONS), map(float, evaluation.stats), strict=True))
