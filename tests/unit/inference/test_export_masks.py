"""Exported masks are those of PyTorch, at any batch and image size."""

import json
import logging
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoint import save_tiny

import codetr
from codetr.checkpoints.files import read_detector_file, write_detector_file
from codetr.evaluation import Postprocess
from codetr.evaluation.detect import detect
from codetr.inference.deployable import Deployable
from codetr.inference.export import export
from codetr.inference.export_check import as_cases, compare, random_inputs
from codetr.inference.predictor import build_detector
from codetr.structures import ImageInfo, Images

ROOT = Path(__file__).resolve().parents[3]
CASES = as_cases([[2, 131, 165], [1, 96, 200]])
FOUND = 10


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with masks. Its boxes are not as flat as those of any random weights: the
    features of a box without area are 0, and those of one of nearly none are not.
    """
    folder = tmp_path_factory.mktemp("masked")
    path = save_tiny(folder / "model.safetensors", "augmentation=none", "masks=refine_small")
    content = read_detector_file(path)
    for name, value in content.weights.items():
        if "regress" in name:
            value.mul_(0.1)
    write_detector_file(path, content)
    return path


def deployable(path: Path, top_k: int | None) -> Deployable:
    content = read_detector_file(path)
    about = content.record.preprocessing
    detector = build_detector(content, str(path))
    return Deployable(detector, about["mean"], about["std"], top_k).eval()


@torch.no_grad()
def test_they_are_those_of_the_detector(masked: Path) -> None:
    images, sizes = random_inputs(CASES[0])
    model = deployable(masked, FOUND)
    assert model.outputs[3:] == ("mask_scores", "masks")
    assert deployable(masked, None).outputs == ("logits", "boxes")
    scores, _, boxes, mask_scores, masks = model(images, sizes)
    padding = torch.ones(2, *images.shape[-2:], dtype=torch.bool)
    for one, (height, width) in zip(padding, sizes.tolist(), strict=True):
        one[:height, :width] = False
    pixels = ((images.float() - model.mean) / model.std).masked_fill(padding[:, None], 0.0)
    given = Images(pixels=pixels, padding=padding, sizes=sizes, padded_sizes=sizes)
    infos = [
        ImageInfo(image_id=0, original_size=(h, w), scale=(1.0, 1.0)) for h, w in sizes.tolist()
    ]
    expected = detect(model.detector, Postprocess(FOUND), given, infos)
    for b, one in enumerate(expected):
        assert one.cells is not None
        torch.testing.assert_close(scores[b], one.scores)
        torch.testing.assert_close(boxes[b], one.boxes_xyxy_px)
        torch.testing.assert_close(mask_scores[b], one.cells.scores)
        torch.testing.assert_close(masks[b], one.cells.probabilities, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_another_mask_is_noticed(masked: Path) -> None:
    model = deployable(masked, FOUND)

    def changed(by: float) -> float:
        def run(images: torch.Tensor, sizes: torch.Tensor) -> list[torch.Tensor]:
            *others, masks = model(images, sizes)
            return [*others, masks + by]

        return compare(model, run, CASES[0]).share_beyond(1e-3)

    assert changed(0.0) == 0
    assert changed(0.01) == 1
    assert changed(float("nan")) == 1


def test_onnx_runtime_finds_them_and_the_example_draws_them(
    masked: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "model.onnx"
    done = export(read_detector_file(masked), str(masked), path, "onnx", cases=CASES, top_k=FOUND)
    assert max(d.distances.max() for d in done.differences) < 1e-3
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = {value.name: value.shape for value in session.get_outputs()}
    assert list(outputs)[3:] == ["mask_scores", "masks"]
    about = json.loads(session.get_modelmeta().custom_metadata_map["codetr"])
    assert about["outputs"] == list(outputs)

    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    arguments = [str(path), str(tmp_path / "image.png"), str(tmp_path / "out.png")]
    monkeypatch.setattr(sys, "argv", ["x", *arguments, "--threshold", "0.0"])
    runpy.run_path(str(ROOT / "scripts/onnx_example.py"), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) == FOUND
    expected = codetr.load(masked, device="cpu").predict(pixels)
    seen = expected.masks[:FOUND].any(dim=0).numpy()
    drawn = (np.asarray(Image.open(tmp_path / "out.png")) != pixels).any(axis=-1)
    assert seen.any()
    assert drawn[seen].mean() > 0.99


@pytest.mark.slow
def test_pt2_has_them(masked: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    done = export(read_detector_file(masked), str(masked), path, "pt2", cases=CASES, top_k=FOUND)
    assert max(d.distances.max() for d in done.differences) < 1e-4


def test_raw_outputs_say_that_masks_are_lost(
    masked: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        export(
            read_detector_file(masked), str(masked), tmp_path / "m.pt2", "pt2",
            cases=CASES[:1], top_k=None, fixed=True,
        )  # fmt: skip
    assert "set top_k for masks" in caplog.text
