"""Masks by the true commands: on the built-in scenes and on photographs."""

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from commands import Command, arguments, environment
from PIL import Image
from pycocotools import mask as rle

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools

MASKS = (
    "masks=refine_small",
    "aux_heads=[rcnn_mask,atss]",
    "evaluation=coco",
    "evaluation.postprocess.max_detections=20",
    "callbacks=default",
    "schedule.epochs=1",
)
PHOTOGRAPHS = (
    "data=coco",
    "data.num_workers=0",
    "augmentation=small",
    "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=2",
    "data.eval_batch_size=2",
)


def check_evaluation(folder: Path, branch: str) -> None:
    """The numbers, the masks as COCO results in pixels of the files, and the panel."""
    numbers = json.loads((folder / "metrics.json").read_text())
    assert 0 <= numbers["mask_AP"] <= 1
    boxes, masks = (
        json.loads((folder / name).read_text())
        for name in ("predictions.json", "predictions_masks.json")
    )
    assert len(boxes) == len(masks) > 0
    for one in masks[::7]:
        height, width = one["segmentation"]["size"]
        assert rle.decode(one["segmentation"]).shape == (height, width)
    same = [a["score"] == b["score"] for a, b in zip(boxes, masks, strict=True)]
    assert all(same) == (branch == "rcnn_mask"), "only refined masks have scores of their own"
    picture = np.asarray(Image.open(folder / "panel.png"))
    assert picture.ndim == 3
    assert picture.std() > 5


def train_and_evaluate(command: Command, folder: Path, *options: str) -> None:
    done = command("train.py", *options, *MASKS, "name=masks")
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"val/mask_AP", (folder / "runs/masks/metrics.csv").read_text())
    best = f"checkpoint={folder}/runs/masks/best.ckpt"
    for branch in ("main", "rcnn_mask"):
        told = (best, f"evaluation.branch={branch}", f"name={branch}", "panel.min_score=0.0")
        limits = tuple(o for o in options if o.startswith("trainer="))
        few = ("trainer.limit_test_batches=1",) if "data=coco" in options else ()
        done = command("eval.py", *told, *limits, *few)
        assert done.returncode == 0, done.stderr[-2000:]
        check_evaluation(folder / "runs" / branch, branch)


def test_both_branches_on_the_built_in_scenes(
    command: Command, small: tuple[str, ...], tmp_path: Path
) -> None:
    """W&B gets the predicted and the true masks of every image of the panel as layers."""
    train_and_evaluate(command, tmp_path, *small)
    best = f"checkpoint={tmp_path}/runs/masks/best.ckpt"
    told = ("panel.min_score=0.0", "logger=wandb", "trainer=cpu", "name=logged")
    # A process of its own: warm ones share the folder in which W&B writes.
    line = arguments("eval.py", best, *told)
    done = subprocess.run(
        line, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "W&B failed" not in done.stdout
    (logged,) = (tmp_path / "runs/logged/wandb").glob("offline-run-*/files/media/images/mask")
    layers = [np.asarray(Image.open(path)) for path in logged.rglob("*.mask.png")]
    assert len(layers) == 2 * 2  # of two images
    assert all(layer.any() for layer in layers)


def test_both_branches_on_photographs(
    command: Command, small: tuple[str, ...], shared: Path, tmp_path: Path
) -> None:
    """True polygons and run lengths of COCO, of images of any size."""
    kept = [o for o in small if not o.startswith(("data.source", "data.root"))]
    root = shared / "data" / "coco_tiny"
    train_and_evaluate(command, tmp_path, *kept, *PHOTOGRAPHS, f"data.root={root}")


def test_a_head_without_masks_is_not_taken_for_one_with(
    command: Command, small: tuple[str, ...], tmp_path: Path
) -> None:
    done = command("train.py", *small, "debug=fast", "callbacks=default", "name=a")
    assert done.returncode == 0, done.stderr[-2000:]
    best = f"checkpoint={tmp_path}/runs/a/best.ckpt"
    done = command("eval.py", best, "evaluation.branch=rcnn_mask", "trainer=cpu")
    assert done.returncode != 0
    assert "evaluation.branch=rcnn_mask: the checkpoint's run had only main, atss" in done.stderr
