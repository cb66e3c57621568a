"""Folders of the transformers library against the library, where it is installed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from codetr.checkpoints.coco import COCO
from codetr.checkpoints.convert import open_checkpoint
from codetr.checkpoints.experiment import compose_experiment
from codetr.errors import UserError
from codetr.inference.predictor import build_detector
from codetr.structures import Images

SMALL = (
    "model.dim=32",
    "model.heads=4",
    "model.hidden=64",
    "model.num_queries=5",
    "model.backbone.depth=3",
    "model.backbone.table=[64,96]",
)


def yolos(folder: Path, labels: list[str], **more: Any) -> nn.Module:
    """A small YOLOS of transformers, saved in ``folder``; every weight is random."""
    transformers = pytest.importorskip("transformers")
    config = transformers.YolosConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        num_detection_tokens=5,
        image_size=[64, 96],
        use_mid_position_embeddings=True,
        layer_norm_eps=1e-6,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        **more,
    )
    torch.manual_seed(0)
    model: nn.Module = transformers.YolosForObjectDetection(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)  # type: ignore[operator]
    return model


def config(*overrides: str) -> Any:
    return compose_experiment("yolos_s_150e_coco", 1, (*SMALL, *overrides))


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (96, 80), (48, 112)])
def test_predictions_are_those_of_the_library(size: tuple[int, int], tmp_path: Path) -> None:
    """But for 96 x 64: the library interpolates positions where the number of patches is that of
    the table, too, and the official code does not.
    """
    model = yolos(tmp_path, ["cat", "dog"]).double()
    content = open_checkpoint(f"huggingface:{tmp_path}", config())
    assert content.record.classes.names == ("cat", "dog")
    detector = build_detector(content, "yolos").double()
    pixels = torch.randn(2, 3, *size, dtype=torch.float64)
    sizes = torch.tensor([size, size])
    padding = torch.zeros(2, *size, dtype=torch.bool)
    ours = detector(Images(pixels=pixels, padding=padding, sizes=sizes, padded_sizes=sizes))
    theirs = model(pixels)
    torch.testing.assert_close(ours.logits, theirs.logits)
    torch.testing.assert_close(ours.boxes, theirs.pred_boxes)


def test_rows_by_category_id_become_coco_classes(tmp_path: Path) -> None:
    labels = [f"N/A {i}" for i in range(91)]
    for name, category in zip(COCO.names, COCO.category_ids, strict=True):
        labels[category] = name
    model = yolos(tmp_path, labels)
    content = open_checkpoint(f"huggingface:{tmp_path}", config())
    assert content.record.classes == COCO
    bias = model.class_labels_classifier.layers[2].bias
    kept = torch.cat([bias[list(COCO.category_ids)], bias[91:]])
    assert torch.equal(content.weights["head.classify.4.bias"], kept)


def test_91_classes_of_ones_own_are_not_cocos(tmp_path: Path) -> None:
    labels = [f"kind {i}" for i in range(91)]
    yolos(tmp_path, labels)
    content = open_checkpoint(f"huggingface:{tmp_path}", config())
    assert content.record.classes.names == tuple(labels)


def folder(path: Path, **changes: Any) -> Path:
    """What a folder has at least, made without the library."""
    settings = {"model_type": "yolos", "hidden_size": 32, "image_size": [64, 96]}
    (path / "config.json").write_text(json.dumps({**settings, **changes}))
    return path


def test_other_settings_are_an_error_that_says_what_to_add(tmp_path: Path) -> None:
    source = f"huggingface:{folder(tmp_path, hidden_size=48, use_mid_position_embeddings=False)}"
    with pytest.raises(UserError, match=r"add model\.dim=48 model\.backbone\.middle=false$"):
        open_checkpoint(source, config())
    folder(tmp_path, patch_size=8)
    with pytest.raises(UserError, match="models with patch_size=8 are not supported"):
        open_checkpoint(source, config())


@pytest.mark.parametrize(
    "value",
    ["32 $(touch x)", "a\nb", 3.5, None, {"a": 1}, [64, "; rm"], "x" * 5000],
    ids=lambda value: repr(value)[:20],
)
def test_only_numbers_are_written_into_the_command_to_run(value: Any, tmp_path: Path) -> None:
    source = f"huggingface:{folder(tmp_path, image_size=value)}"
    with pytest.raises(
        UserError, match=r"config\.json: image_size is .*: give a whole num"
    ) as seen:
        open_checkpoint(source, config())
    assert "model." not in str(seen.value)
    assert "\n" not in str(seen.value)
    assert len(str(seen.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("key", ["9" * 5000, "one", "\u00b2", "-1", ""])
def test_a_table_without_numbers_names_no_classes(key: str, tmp_path: Path) -> None:
    yolos(tmp_path, ["cat", "dog"])
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "id2label": {"0": "cat", key: "dog"}}))
    content = open_checkpoint(f"huggingface:{tmp_path}", config())
    assert content.record.classes.names != ("cat", "dog")


def test_what_is_no_such_folder_is_named(tmp_path: Path) -> None:
    source = f"huggingface:{tmp_path}"
    with pytest.raises(UserError, match=r"has no config\.json"):
        open_checkpoint(source, config())
    folder(tmp_path)
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        open_checkpoint(source, config())
    folder(tmp_path, model_type="bert")
    with pytest.raises(UserError, match="model_type is 'bert': give a folder of one of yolos, "):
        open_checkpoint(source, config())
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="is no JSON object"):
        open_checkpoint(source, config())
    with pytest.raises(UserError, match="give the experiment it belongs to"):
        open_checkpoint(source)


def test_unknown_and_missing_tensors_are_told(tmp_path: Path) -> None:
    yolos(tmp_path, ["cat", "dog"])
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    save_file({**state, "more.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"1 unknown keys \(more\.weight\)"):
        open_checkpoint(f"huggingface:{tmp_path}", config())
    del state["vit.layernorm.bias"]
    save_file(state, path)
    with pytest.raises(UserError, match=r"backbone\.body\.norm\.bias"):
        build_detector(open_checkpoint(f"huggingface:{tmp_path}", config()), "yolos")
