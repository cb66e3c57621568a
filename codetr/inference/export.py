"""Detectors as files that run without this package: torch.export (.pt2) and ONNX."""

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

log = logging.getLogger(__name__)

INPUTS = ("images", "sizes")
AXES = ("batch", "height", "width")
METADATA = "codetr"
"""Where both formats keep ``describe``'s JSON: an ONNX metadata key, an extra file of a .pt2."""
OPSET = 18
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-3
"""Of probabilities and relative coordinates; what is beyond it is another detection."""
SHARE = 0.01
"""So many detections may differ: where two tokens score alike, each runtime may select another."""

Format = Literal["pt2", "onnx"]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written, and how far it is from PyTorch in each case."""

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
    """Write the detector of a checkpoint (see ``Deployable``), whose file messages call
    ``source``, and run what was written on ``cases``.

    Batch size, height and width stay free in the file, or are ``fixed`` to those of the first case.
    ``trust`` is that of ``codetr.load``. Raises UserError for what a user can correct, and where
    the file's answers are not PyTorch's.
    """
    path = Path(path)
    _check_arguments(path, kind)
    if top_k is None:
        _say_what_is_lost(content, source, path)
    if fixed and set(cases) != {cases[0]}:
        raise UserError("fixed=true: the file takes one size alone: give cases=[[1,800,1344]]")
    preprocessing = content.record.preprocessing
    model = Deployable(
        build_detector(content, source, trust), preprocessing["mean"], preprocessing["std"], top_k
    ).eval()
    about = json.dumps(describe(content.record, model.outputs), ensure_ascii=False)
    with _plain_operations(), torch.no_grad():
        program = trace(model, cases[0], fixed)
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "pt2":
            torch.export.save(program, path, extra_files={f"{METADATA}.json": about})
        else:
            write_onnx(path, program, model.outputs, about)
        run = run_pt2(path) if kind == "pt2" else run_onnx(path)
        differences = tuple(compare(model, run, case) for case in cases)
    for found in differences:
        log.info("%s", found.line(TOLERANCE))
    worst = max(found.share_beyond(TOLERANCE) for found in differences)
    if worst > SHARE:
        raise UserError(
            f"{path}: {worst:.1%} of its detections are not those of PyTorch: do not use the file, "
            "and report the model and the versions of torch, onnxscript and onnxruntime"
        )
    return Exported(path=path, differences=differences)


def trace(model: Deployable, case: Case, fixed: bool = False) -> torch.export.ExportedProgram:
    """The model's operations for any number and size of images that have at least as many tokens
    as the model has queries; so must ``case``, where they are recorded.
    """
    free = torch.export.Dim.DYNAMIC
    # What the recorded sizes do not decide must not be decided by them: where 120 cells fill whole
    # windows of 12, the file would take only images of which this is true.
    with symbolic_config.patch(backed_size_oblivious=not fixed):  # type: ignore[attr-defined]
        return torch.export.export(
            model,
            random_inputs(case),
            dynamic_shapes=None if fixed else ({0: free, 2: free, 3: free}, {0: free}),
            strict=False,
            # Such as 2 * floor(n / 2) <= n, of pooling: true, but beyond what the tracer can prove.
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def write_onnx(
    path: Path, program: torch.export.ExportedProgram, outputs: Sequence[str], about: str
) -> None:
    """Translate a program of plain operations by PyTorch's ONNX exporter, and write it."""
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
    translated.save(path)


def _name_free_sizes(graph: Any) -> None:
    """Call what is free in the inputs and outputs by name, where the tracer has numbers."""
    sizes = [graph.inputs[0].shape[i] for i in (0, 2, 3)]
    free = {str(n): name for n, name in zip(sizes, AXES, strict=True) if not isinstance(n, int)}
    for value in (*graph.inputs, *graph.outputs):
        for i, size in enumerate(value.shape):
            if str(size) in free:
                value.shape[i] = free[str(size)]


def describe(record: RunRecord, outputs: Sequence[str]) -> dict[str, Any]:
    """What whoever runs the file must know, in plain types.

    ``resize``: fit the image within ``short`` and ``long`` sides (pixels), or into a square
    ``canvas`` whose rest is grey (114) and counts as image; empty: as it is. ``antialias``: whether
    shrinking averages, as Pillow's does, or takes the nearest pixels alone, as OpenCV's; with it,
    outside a canvas, sizes are rounded by ``detr_size``, else by ``fitted_size``. Frames are
    multiples of ``size_divisor``. Normalisation is inside the model.
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


def _say_what_is_lost(content: DetectorFile, source: str, path: Path) -> None:
    if content.record.part(source, "model", "detector").get("mask_branch") is not None:
        log.warning(
            "%s finds masks, but %s will give boxes alone: masks come with top_k", source, path
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
    """Deformable attention in operations that every runtime has, for a while."""
    cpu = torch.device("cpu")
    use_msda("torch", cpu)
    try:
        yield
    finally:
        use_msda("auto", cpu)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says to its developers."""
    talkers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in talkers]
    for logger in talkers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for logger, level in zip(talkers, before, strict=True):
                logger.setLevel(level)
