"""Export of detectors to files that run without this package: torch.export (.pt2) and ONNX."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.fx.experimental import _config as symbolic_config

from codetr.checkpoints.files import DetectorFile, RunRecord
from codetr.errors import UserError
from codetr.inference.deployable import Deployable
from codetr.inference.export_check import (
    Case,
    Difference,
    compare,
    random_inputs,
    run_onnx,
    run_pt2,
)
from codetr.inference.predictor import build_detector
from codetr.inference.views import SIDES
from codetr.models.ops import use_msda
from codetr.writing import replacing, writable

log = logging.getLogger(__name__)

INPUTS = ("images", "sizes")
AXES = ("batch", "height", "width")
METADATA = "codetr"
"""Key of ``describe``'s JSON in both formats: an ONNX metadata key, an extra file of a .pt2."""
OPSET = 18
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-3
"""For probabilities and relative coordinates; with larger differences, detections differ."""
SHARE = 0.01
"""Share of detections that may differ: runtimes may select different tokens with equal scores."""

Format = Literal["pt2", "onnx"]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The exported file, and its differences from PyTorch in each case."""

    path: Path
    differences: tuple[Difference, ...]


def export(
    content: DetectorFile,
    source: str,
    path: str | Path,
    kind: Format,
    *,
    cases: Sequence[Case],
    top_k: int | None = 300,
    fixed: bool = False,
    trust: bool = False,
) -> Exported:
    """Export the detector of a checkpoint (see ``Deployable``), called ``source`` in messages, and
    compare the exported file with PyTorch on ``cases``.

    Batch size, height and width are dynamic, or ``fixed`` to those of the first case. ``trust``:
    see ``codetr.load``. Raises UserError for whatever a user can correct, and if the results of the
    file differ from PyTorch's.
    """
    path = Path(path)
    _check_arguments(path, kind)
    if top_k is None:
        _warn_of_lost_masks(content, source, path)
    if fixed and set(cases) != {cases[0]}:
        raise UserError("fixed=true: the file has a single size: give cases=[[1,800,1344]]")
    preprocessing = content.record.preprocessing
    model = Deployable(
        build_detector(content, source, trust), preprocessing["mean"], preprocessing["std"], top_k
    ).eval()
    about = json.dumps(describe(content.record, model.outputs), ensure_ascii=False)
    with _plain_operations(), torch.no_grad():
        program = trace(model, cases[0], fixed)
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "pt2":
            with replacing(path) as file:
                torch.export.save(program, file, extra_files={f"{METADATA}.json": about})
        else:
            write_onnx(path, program, model.outputs, about)
        run = run_pt2(path) if kind == "pt2" else run_onnx(path)
        differences = tuple(compare(model, run, case) for case in cases)
    for found in differences:
        log.info("%s", found.line(TOLERANCE))
    worst = max(found.share_beyond(TOLERANCE) for found in differences)
    if worst > SHARE:
        raise UserError(
            f"{path}: {worst:.1%} of its detections differ from PyTorch's: do not use the file, "
            "and report the model and the versions of torch, onnxscript and onnxruntime"
        )
    return Exported(path=path, differences=differences)


def trace(model: Deployable, case: Case, fixed: bool = False) -> torch.export.ExportedProgram:
    """Trace the model for any number and size of images with at least as many tokens as the model
    has queries, using inputs of ``case``, which must fulfil this too.
    """
    free = torch.export.Dim.DYNAMIC
    # The trace must not specialise on properties of the example's sizes: with 120 cells, which fill
    # whole windows of 12, the file would be restricted to images for which this is true.
    with symbolic_config.patch(backed_size_oblivious=not fixed):  # type: ignore[attr-defined]
        return torch.export.export(
            model,
            random_inputs(case),
            dynamic_shapes=None if fixed else ({0: free, 2: free, 3: free}, {0: free}),
            strict=False,
            # The tracer cannot prove conditions such as 2 * floor(n / 2) <= n of pooling.
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def write_onnx(
    path: Path, program: torch.export.ExportedProgram, outputs: Sequence[str], about: str
) -> None:
    """Convert a program of plain operations by PyTorch's ONNX exporter and write it."""
    with _quiet():
        translated = torch.onnx.export(
            program,
            input_names=INPUTS,
            output_names=list(outputs),
            opset_version=OPSET,
            verbose=False,
        )
    assert translated is not None, "only the old exporter returns none"
    _name_free_sizes(translated.model.graph)
    translated.model.metadata_props[METADATA] = about
    with writable(path):
        translated.save(path)


def _name_free_sizes(graph: Any) -> None:
    """Name the dynamic dimensions of inputs and outputs, which the tracer has numbered."""
    sizes = [graph.inputs[0].shape[i] for i in (0, 2, 3)]
    free = {str(n): name for n, name in zip(sizes, AXES, strict=True) if not isinstance(n, int)}
    for value in (*graph.inputs, *graph.outputs):
        for i, size in enumerate(value.shape):
            if str(size) in free:
                value.shape[i] = free[str(size)]


def describe(record: RunRecord, outputs: Sequence[str]) -> dict[str, Any]:
    """The metadata needed to run the file, in plain types.

    ``resize``: fit the image within ``short`` and ``long`` sides (pixels), or into a square
    ``canvas`` that is padded with grey (114) and is all valid area; empty: no resize.
    ``antialias``: whether to resize as Pillow (averaging) or as OpenCV (nearest four pixels); with
    it and without canvas, sizes are rounded by ``detr_size``, else by ``fitted_size``. Frames are
    multiples of ``size_divisor``. Normalisation is part of the model.
    """
    preprocessing = record.preprocessing
    resize = preprocessing["resize"]
    return {
        "class_names": list(record.classes.names),
        "category_ids": list(record.classes.category_ids),
        "resize": {key: resize[key] for key in SIDES if key in resize},
        "antialias": bool(resize.get("antialias", False)),
        "size_divisor": preprocessing["size_divisor"],
        "normalised_inside": {"mean": preprocessing["mean"], "std": preprocessing["std"]},
        "colours": "RGB",
        "inputs": {
            "images": "uint8 (batch, 3, height, width), images at the top left",
            "sizes": "int64 (batch, 2): height and width of each image in its frame",
        },
        "outputs": list(outputs),
    }


def _warn_of_lost_masks(content: DetectorFile, source: str, path: Path) -> None:
    if content.record.part(source, "model", "detector").get("mask_branch") is not None:
        log.warning(
            "%s predicts masks, but %s will return boxes only: set top_k for masks", source, path
        )


def _check_arguments(path: Path, kind: str) -> None:
    if kind not in ("pt2", "onnx"):
        raise UserError(f"format={kind}: give pt2 or onnx")
    if path.suffix != f".{kind}":
        raise UserError(f"out={path}: give a name that ends in .{kind}")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if kind == "onnx" and missing:
        raise UserError(
            f"format=onnx needs {', '.join(missing)}: pip install 'codetr[export]', "
            "or use format=pt2"
        )


@contextmanager
def _plain_operations() -> Iterator[None]:
    """Use deformable attention made of operations that every runtime has, within the block."""
    cpu = torch.device("cpu")
    use_msda("torch", cpu)
    try:
        yield
    finally:
        use_msda("auto", cpu)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings of the exporter that are meant for its developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
