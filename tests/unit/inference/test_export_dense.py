"""Conditional DETR, DAB-DETR, DN-DETR: exported with free sizes, and published and loaded again."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_checkpoint import CLASSES, save_checkpoint

import codetr
from codetr.checkpoints.files import read_detector_file
from codetr.inference.export import TOLERANCE, Format, export
from codetr.inference.export_check import as_cases
from codetr.inference.predictor import Prediction

COMMON = (
    "model.backbone.name=resnet18",
    "model.backbone.pretrained=false",
    "model.dim=32",
    "model.hidden=32",
    "model.heads=4",
    "model.encoder_layers=1",
    "model.decoder_layers=2",
    "model.num_queries=12",
    "evaluation=coco",
    "augmentation=none",
    f"num_classes={len(CLASSES)}",
)
MODELS = {
    "conditional_detr": (),
    "dab_detr": ("model.num_patterns=2",),
    "dn_detr": (),
}


def checkpoint(model: str, folder: Path) -> Path:
    """A small one with random weights."""
    overrides = (f"model={model}", *COMMON, *MODELS[model])
    return save_checkpoint(folder / f"{model}.safetensors", overrides)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "pt2"])
@pytest.mark.parametrize("model", MODELS)
def test_exported_files_take_any_size(model: str, kind: Format, tmp_path: Path) -> None:
    source = checkpoint(model, tmp_path)
    cases = as_cases([[2, 131, 165], [1, 96, 200], [3, 200, 97]])
    content, path = read_detector_file(source), tmp_path / f"{model}.{kind}"
    done = export(content, str(source), path, kind, cases=cases, top_k=20)
    assert len(done.differences) == len(cases)
    assert max(found.distances.max() for found in done.differences) < TOLERANCE
    assert max(found.distances.median() for found in done.differences) < 1e-5


@pytest.mark.parametrize("model", MODELS)
def test_a_published_folder_predicts_the_same(model: str, tmp_path: Path) -> None:
    source = checkpoint(model, tmp_path)
    image = tmp_path / "image.png"
    Image.effect_noise((150, 131), 90).convert("RGB").save(image)
    detector = codetr.load(str(source), device="cpu")
    detector.save_pretrained(tmp_path / "hub")
    again = codetr.Predictor.from_pretrained(tmp_path / "hub", device="cpu")
    one, other = (each.predict(str(image)) for each in (detector, again))
    assert isinstance(one, Prediction)
    assert isinstance(other, Prediction)
    assert len(one) > 0
    torch.testing.assert_close(one.scores, other.scores)
    torch.testing.assert_close(one.boxes_xyxy_px, other.boxes_xyxy_px)
