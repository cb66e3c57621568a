"""The card of a model: what its run says of it, and nothing that is not known."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from tiny_checkpoint import CLASSES, TINY, save_tiny

import codetr
from codetr.checkpoints.experiment import build_record, compose_train
from codetr.evaluation.coco import CocoMeasure
from codetr.evaluation.lvis import FREQUENCIES
from codetr.inference.model_card import RunResults, base_model, model_card, run_results

MEASURED = {"AP": 0.51239, "AP50": 0.7, "APl": -1.0, "AR1": 0.6, "epoch": 7, "steps": 70}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder, finished."""
    for name in ("best.ckpt", "last.ckpt"):
        (tmp_path / name).touch()
    save_tiny(tmp_path / "model.safetensors", "augmentation=none")
    (tmp_path / "metrics.json").write_text(json.dumps(MEASURED))
    return tmp_path


def front(card: ModelCard) -> dict[str, Any]:
    """The YAML at its top, as the Hub reads it."""
    return ModelCard(str(card)).data.to_dict()


def test_a_hub_folder_has_what_the_run_measured(run: Path, tmp_path: Path) -> None:
    predictor = codetr.load(run / "model.safetensors", device="cpu")
    given = {"name": "Cats", "license": "apache-2.0", "datasets": ["me/cats"], "limits": "Night."}
    predictor.save_pretrained(tmp_path / "hub", model_card_kwargs=given)
    card = ModelCard.load(tmp_path / "hub/README.md")
    said = card.data.to_dict()
    assert said["library_name"] == "codetr"
    assert said["pipeline_tag"] == "object-detection"
    assert said["license"] == "apache-2.0"
    assert said["datasets"] == ["me/cats"]
    assert "base_model" not in said
    ((entry,),) = [said["model-index"]]
    assert entry["name"] == "Cats"
    (results,) = entry["results"]
    assert results["dataset"]["type"] == "me/cats"
    assert {m["name"]: m["value"] for m in results["metrics"]} == {"AP": 0.5124, "AP50": 0.7}
    assert "| AP | 0.5124 |" in card.text
    assert "weights of epoch 7" in card.text
    assert "Night." in card.text
    assert "APl" not in card.content
    assert "speed" not in card.content.lower()


def test_results_are_those_of_the_file(run: Path) -> None:
    assert run_results(str(run / "best.ckpt")).epoch == 7
    assert run_results(str(run / "model.safetensors")).metrics == {"AP": 0.51239, "AP50": 0.7}
    assert run_results(str(run / "last.ckpt")) == RunResults()
    assert run_results("zoo:co_dino_5scale_r50_1x_coco") == RunResults()
    written = (run / "metrics.json").stat().st_mtime
    os.utime(run / "best.ckpt", (written + 9, written + 9))  # training goes on
    assert run_results(str(run / "best.ckpt")) == RunResults()


@pytest.mark.parametrize(
    "content", ["", "[1]", "{}", '{"AP": 0.5}', '{"epoch": true, "AP": 1}', "[" * 100_000]
)
def test_other_files_of_that_name_say_nothing(run: Path, content: str) -> None:
    (run / "metrics.json").write_text(content)
    assert run_results(str(run / "best.ckpt")) == RunResults()


@pytest.mark.parametrize("prefix", ["", "mask_"])
def test_every_precision_that_is_measured_is_shown(run: Path, prefix: str) -> None:
    numbers = {f"{prefix}{n}": 0.25 for n in (*CocoMeasure().lines, *FREQUENCIES.values())}
    (run / "metrics.json").write_text(json.dumps({"epoch": 1, **numbers}))
    found = run_results(str(run / "best.ckpt")).metrics
    assert len(found) == 9
    assert found == {name: 0.25 for name in numbers if "AP" in name}


@pytest.mark.parametrize("name", ["A: 'cat' # 1", "- x", "yes", "null", "---", "a\n---\nb", "12"])
def test_any_words_are_read_back_from_the_front_matter(name: str) -> None:
    record = build_record(compose_train(["num_classes=3"]), CLASSES)
    details = {"name": name, "license": name, "datasets": (name, "me/other")}
    said = front(model_card(record, RunResults(metrics={"AP": 0.5}, epoch=1), details))
    assert said["model-index"][0]["name"] == said["license"] == name
    assert said["datasets"] == [name, "me/other"]


def test_numbers_that_are_none_are_left_out(run: Path) -> None:
    (run / "metrics.json").write_text('{"epoch": 1, "AP": NaN, "AP50": "high", "AP75": 1}')
    assert run_results(str(run / "best.ckpt")).metrics == {"AP75": 1.0}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("model=co_dino",), "timm/resnet50.tv_in1k"),
        (("model=co_dino", "model.backbone.pretrained=false"), None),
        (("model=co_dino", "checkpoint=runs/secret/best.ckpt"), None),
        (("model=co_dino", "checkpoint=zoo:co_dino_5scale_r50_1x_coco"), None),  # not on the Hub
        (("model=co_dino", "checkpoint=zoo:no_such"), None),
    ],
)
def test_base_model(overrides: tuple[str, ...], expected: str | None) -> None:
    record = build_record(compose_train(["num_classes=3", *overrides]), CLASSES)
    assert base_model(record.config) == expected
    said = front(model_card(record, RunResults(), {}))
    assert said.get("base_model") == expected
    assert "model-index" not in said
    assert "secret" not in str(model_card(record, RunResults(), {}))


def test_what_is_known_of_the_training_is_said() -> None:
    record = build_record(compose_train(["num_classes=3"]), CLASSES)
    text = str(model_card(record, RunResults(metrics={"AP": 0.5}, epoch=2), {}))
    assert "training schemes: one_to_one, denoising, collaborative" in text
    assert "synthetic scenes of codetr" in text
    tiny = build_record(compose_train([*TINY, "data=coco", "data.root=/a/mine"]), CLASSES)
    text = str(model_card(tiny, RunResults(), {"base_model": "me/base"}))
    assert "mine" not in text
    assert (
        front(model_card(tiny, RunResults(), {"base_model": "me/base"}))["base_model"] == "me/base"
    )
    assert "[Which images and boxes it was trained on" in text
