"""An offline W&B run, read back from the files that W&B wrote."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

LOG = """
import sys
import torch
from pathlib import Path
from PIL import Image
from codetr.inference.pictures import Comparison
from codetr.structures import Detections
from codetr.training.wandb_logger import wandb_logger

folder, resumes = sys.argv[1], sys.argv[2] or None
options = {"per_layer": True, "checkpoints": True, "datasets": True} if resumes is None else {}
logger = wandb_logger(folder, "project", "mine", offline=True, resumes=resumes, **options)
terms = {"loss_dn": 3.0, "loss/dn/layer0/l1": 1.0, "loss/dn/layer1/l1": 2.0}
logger.log_metrics({"val/AP": 0.5, "val/AP_large": -1.0, "loss": -1.0, **terms}, step=1)
annotations = Path(folder, "train.json")
annotations.write_text("{}")
logger.log_datasets([annotations, annotations])
Path(folder, "best.ckpt").write_bytes(b"weights")
logger.log_metrics({"val/AP": 0.4}, step=2)
found = Detections(
    boxes_xyxy_px=torch.tensor([[1.0, 2.0, 30.0, 20.0]]),
    scores=torch.tensor([0.75]),
    labels=torch.tensor([1]),
)
shown = Comparison(
    image=torch.zeros(3, 32, 48, dtype=torch.uint8),
    predicted=found,
    true_boxes=torch.tensor([[0.0, 2.0, 28.0, 20.0]]),
    true_labels=torch.tensor([0]),
    names=("ant", "bee"),
)
logger.log_image("boxes/validation", [Image.new("RGB", (48, 32))], boxes=[shown.layers()])
logger.finalize("success")
"""


def log(folder: Path, resumes: str = "") -> Path:
    """The folder of a W&B run that was written by a process of its own."""
    before = set(folder.glob("wandb/offline-run-*"))
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    subprocess.run(
        [sys.executable, "-c", LOG, str(folder), resumes],
        check=True,
        capture_output=True,
        env={**env, "WANDB_MODE": "offline"},
    )
    (made,) = set(folder.glob("wandb/offline-run-*")) - before
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    return log(folder)


BLOCK = 32768
FILE_HEADER = 7
CHUNK = struct.Struct("<IHB")
"""Checksum, length, and kind: whole, first, middle or last part of a record (LevelDB's log)."""
WHOLE, LAST = 1, 4


def records(run: Path) -> list:
    """What is in the run's file."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = run.glob("run-*.wandb")
    data = file.read_bytes()
    assert data.startswith(b":W&B")
    found, pending, at = [], b"", FILE_HEADER
    while at + CHUNK.size <= len(data):
        if BLOCK - at % BLOCK < CHUNK.size:  # no chunk begins in the rest of a block
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = CHUNK.unpack_from(data, at)
        pending += data[at + CHUNK.size : at + CHUNK.size + length]
        at += CHUNK.size + length
        if kind in (WHOLE, LAST):
            found.append(Record.FromString(pending))
            pending = b""
    return found


def test_name_and_best_of_validation_are_in_the_summary(run: Path) -> None:
    found = records(run)
    assert next(r.run.display_name for r in found if r.HasField("run")) == "mine"
    defined = {r.metric.name: r.metric.summary.max for r in found if r.HasField("metric")}
    assert defined.get("val/AP") is True
    assert defined.get("val/AP50") is True


def history(run: Path) -> list[dict]:
    return [
        {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in r.history.item}
        for r in records(run)
        if r.HasField("history")
    ]


def test_undefined_metrics_are_not_charted(run: Path) -> None:
    rows = history(run)
    assert [row["val/AP"] for row in rows if "val/AP" in row] == [0.5, 0.4]
    assert not any("val/AP_large" in row for row in rows)
    found = [row["train/loss"] for row in rows if "train/loss" in row]
    assert found == [-1.0]  # a loss may be anything


def test_loss_terms_are_in_the_sections_asked_for(run: Path, folder: Path) -> None:
    (row,) = [row for row in history(run) if "train/loss" in row]
    assert row["train/loss_dn"] == 3.0
    assert row["loss/dn/layer1/l1"] == 2.0
    assert row["trainer/global_step"] == 1
    (row,) = [row for row in history(log(folder, resumes="last")) if "train/loss" in row]
    assert row["train/loss_dn"] == 3.0
    assert not any(name.startswith("loss") for name in row)


def test_artifacts_are_logged_on_request(run: Path, folder: Path) -> None:
    def logged(of: Path) -> dict[str, list[str]]:
        requests = [r.request.log_artifact for r in records(of) if r.HasField("request")]
        artifacts = [r.artifact for r in records(of) if r.HasField("artifact")]
        artifacts += [r.artifact for r in requests if r.artifact.name]
        return {a.type: [e.path for e in a.manifest.contents] for a in artifacts}

    found = logged(run)
    assert found["dataset"] == ["train.json"]
    assert found["model"] == ["best.ckpt"]
    assert not {"dataset", "model"} & logged(log(folder, resumes="last")).keys()


def test_boxes_can_be_switched_on_and_name_class_and_score(run: Path) -> None:
    (image,) = run.rglob("files/media/images/boxes/*.png")
    assert image.is_file()
    layers = [json.loads(path.read_text()) for path in run.rglob("*.boxes2D.json")]
    boxes = [box for layer in layers for box in layer["box_data"]]
    assert {box["box_caption"] for box in boxes} == {"bee 0.75", "ant"}
    (predicted,) = [box for box in boxes if "scores" in box]
    assert predicted["scores"] == {"score": 0.75}
    assert predicted["position"] == {"minX": 1.0, "minY": 2.0, "maxX": 30.0, "maxY": 20.0}
    assert predicted["domain"] == "pixel"


def test_resumed_training_continues_the_wandb_run(run: Path, folder: Path) -> None:
    kept = (folder / "wandb_run_id.txt").read_text().strip()
    assert run.name.endswith(kept)
    assert log(folder, resumes="last").name.endswith(kept)
    assert not log(folder).name.endswith(kept), "a run that starts anew is another one"
