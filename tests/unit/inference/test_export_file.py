"""The written file gives the detections of PyTorch, at any batch and image size."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from tiny_checkpoint import CLASSES

import codetr
from codetr.checkpoints.files import read_detector_file
from codetr.errors import UserError
from codetr.evaluation import Postprocess
from codetr.inference.deployable import Deployable
from codetr.inference.export import export
from codetr.inference.export_check import as_cases, compare, random_inputs
from codetr.inference.predictor import build_detector
from codetr.structures import ImageInfo, Predictions

ROOT = Path(__file__).resolve().parents[3]
CASES = as_cases([[2, 131, 165], [1, 96, 200], [3, 200, 97]])


def deployable(tiny: Path, top_k: int | None) -> Deployable:
    content = read_detector_file(tiny)
    about = content.record.preprocessing
    detector = build_detector(content, str(tiny))
    return Deployable(detector, about["mean"], about["std"], top_k).eval()


@torch.no_grad()
def test_top_k_inside_is_the_postprocess(tiny: Path) -> None:
    images, sizes = random_inputs(CASES[0])
    raw, top = deployable(tiny, None), deployable(tiny, 20)
    logits, boxes = raw(images, sizes)
    infos = [
        ImageInfo(image_id=0, original_size=(h, w), scale=(1.0, 1.0)) for h, w in sizes.tolist()
    ]
    expected = Postprocess(20)(Predictions(logits=logits, boxes=boxes), sizes, infos)
    for found in zip(*top(images, sizes), expected, strict=True):
        scores, labels, corners, wanted = found
        torch.testing.assert_close(scores, wanted.scores)
        torch.testing.assert_close(corners, wanted.boxes_xyxy_px)
        assert labels.tolist() == wanted.labels.tolist()


@torch.no_grad()
def test_what_lies_in_the_padding_does_not_matter(tiny: Path) -> None:
    model = deployable(tiny, None)
    images, sizes = random_inputs(CASES[0])
    other = images.clone()
    height, width = sizes[-1].tolist()
    other[-1, :, height:] = 255
    other[-1, :, :, width:] = 7
    for a, b in zip(model(images, sizes), model(other, sizes), strict=True):
        torch.testing.assert_close(a, b)


def test_a_wrong_file_is_noticed(tiny: Path) -> None:
    model = deployable(tiny, 20)
    with torch.no_grad():
        same = compare(model, model, CASES[0])
        other = compare(model, lambda images, sizes: model(255 - images, sizes), CASES[0])
        broken = compare(
            model, lambda i, s: [value * float("nan") for value in model(i, s)], CASES[0]
        )
    assert same.share_beyond(1e-9) == 0
    assert other.share_beyond(1e-3) > 0.2
    assert broken.share_beyond(1e-3) == 1
    assert "2 images of 131 x 165" in same.line(1e-3)


@pytest.mark.slow
def test_pt2_is_torch_alone(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    done = export(read_detector_file(tiny), str(tiny), path, "pt2", cases=CASES, top_k=20)
    assert max(d.distances.max() for d in done.differences) < 1e-4
    extra = {"codetr.json": ""}
    program = torch.export.load(path, extra_files=extra)
    assert json.loads(extra["codetr.json"])["class_names"] == list(CLASSES.names)
    assert "codetr" not in {str(n.target).split(".")[0] for n in program.graph.nodes}


def test_fixed_size_takes_the_first_case_alone(tiny: Path, tmp_path: Path) -> None:
    content = read_detector_file(tiny)
    with pytest.raises(UserError, match="fixed=true"):
        export(content, str(tiny), tmp_path / "m.pt2", "pt2", cases=CASES, fixed=True)
    done = export(content, str(tiny), tmp_path / "m.pt2", "pt2", cases=CASES[1:2], fixed=True)
    assert done.differences[0].distances.max() < 1e-4
    program = torch.export.load(tmp_path / "m.pt2").module()
    with pytest.raises(Exception, match=r"(?i)guard|shape|size"):
        program(*random_inputs(CASES[0]))


@pytest.fixture(scope="module")
def onnx_file(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written once: the exporter is the slow part."""
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    done = export(read_detector_file(tiny), str(tiny), path, "onnx", cases=CASES, top_k=36)
    assert [d.case for d in done.differences] == list(CASES)
    assert max(d.distances.max() for d in done.differences) < 1e-3
    return path


def test_onnx_has_names_free_sizes_and_metadata(onnx_file: Path) -> None:
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    inputs = {value.name: value.shape for value in session.get_inputs()}
    assert inputs == {"images": ["batch", 3, "height", "width"], "sizes": ["batch", 2]}
    assert [o.name for o in session.get_outputs()] == ["scores", "labels", "boxes_xyxy_px"]
    about = json.loads(session.get_modelmeta().custom_metadata_map["codetr"])
    assert about["class_names"] == list(CLASSES.names)
    assert about["category_ids"] == list(CLASSES.category_ids)
    assert about["resize"] == {}


def test_example_without_torch_finds_what_the_predictor_finds(
    onnx_file: Path, tiny: Path, tmp_path: Path
) -> None:
    path = tmp_path / "image.png"
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    out = tmp_path / "out.png"
    code = f"""
import sys, runpy
sys.modules['torch'] = None  # importing it fails
sys.argv = ['x', {str(onnx_file)!r}, {str(path)!r}, {str(out)!r}, '--threshold', '0.0']
runpy.run_path({str(ROOT / "scripts/onnx_example.py")!r}, run_name='__main__')
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    lines = done.stdout.decode().splitlines()
    expected = codetr.load(tiny, device="cpu").predict(path)
    assert len(lines) == len(expected) == 36
    for line, name, score, box in zip(
        lines, expected.names, expected.scores, expected.boxes_xyxy_px, strict=True
    ):
        *words, found_score, x0, y0, x1, y1 = line.split()
        assert " ".join(words) == name
        assert float(found_score) == pytest.approx(score.item(), abs=1e-3)
        assert [float(v) for v in (x0, y0, x1, y1)] == pytest.approx(box.tolist(), abs=0.1)
    assert out.is_file()


@pytest.mark.parametrize(
    "text",
    [
        "[1,800,1344]",
        "null",
        "[]",
        "[[1,2]]",
        "[[0,8,8]]",
        "[[a,b,c]]",
        "[[1,2.5,3]]",
        "abc",
        "3",
        "['abc']",
        "[[true,8,8]]",
    ],
)
def test_other_cases_are_one_line_with_the_right_form(text: str) -> None:
    given = OmegaConf.create(f"cases: {text}").cases
    with pytest.raises(UserError, match=r"^cases=.*such as cases=\[\[1,800,1344\]\]$"):
        as_cases(given)


@pytest.mark.parametrize(
    ("path", "kind", "named"),
    [("m.onnx", "pt2", r"\.pt2"), ("m.tflite", "tflite", "format=tflite")],
)
def test_bad_arguments_are_named(tiny: Path, path: str, kind: str, named: str) -> None:
    with pytest.raises(UserError, match=named):
        export(read_detector_file(tiny), str(tiny), path, kind, cases=CASES)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="top_k=0"):
        Deployable(torch.nn.Identity(), (0, 0, 0), (1, 1, 1), 0)
