"""OpenVINO's runtime reads the ONNX file and finds what PyTorch finds, where it is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from codetr.checkpoints.files import read_detector_file
from codetr.inference.deployable import Deployable
from codetr.inference.export import export
from codetr.inference.export_check import as_cases, compare
from codetr.inference.predictor import build_detector

CASES = as_cases([[2, 131, 165], [1, 96, 200]])


def test_openvino_finds_the_same(tiny: Path, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="needs pip install openvino")
    path = tmp_path / "model.onnx"
    content = read_detector_file(tiny)
    export(content, str(tiny), path, "onnx", cases=CASES, top_k=20)
    compiled = openvino.Core().compile_model(
        openvino.convert_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )

    def run(images: torch.Tensor, sizes: torch.Tensor) -> list[torch.Tensor]:
        found = compiled([images.numpy(), sizes.numpy()])
        return [torch.from_numpy(np.array(found[output])) for output in compiled.outputs]

    assert [o.any_name for o in compiled.outputs] == ["scores", "labels", "boxes_xyxy_px"]
    about = content.record.preprocessing
    detector = build_detector(content, str(tiny))
    model = Deployable(detector, about["mean"], about["std"], 20).eval()
    with torch.no_grad():
        for case in CASES:
            difference = compare(model, run, case)
            assert difference.share_beyond(1e-3) <= 0.01, difference.line(1e-3)
