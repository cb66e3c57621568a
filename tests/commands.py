"""What the tests of whole commands share."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]

SMALL = (
    "data.source.num_train=4",
    "data.source.num_val=2",
    "data.batch_size=2",
    "logger=[csv]",
    "trainer=cpu",
    "trainer.log_every_n_steps=1",
    "schedule.warmup_steps=0",
    "model.dim=64",
    "model.hidden=32",
    "model.decoder_layers=2",
    "model.num_queries=20",
)
"""Overrides that make a training step of the built-in run take a tenth of a second."""

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def environment() -> dict[str, str]:
    """One thread, since several commands may run at once; no W&B network."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "HYDRA"))}
    return {**inherited, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}


def arguments(script: str, *overrides: str) -> list[str]:
    """The command line of a script."""
    return [sys.executable, str(ROOT / script), *overrides]


def write_coco(folder: Path, boxes: dict[str, list[list[float]]], size: int = 64) -> None:
    """A COCO-format folder with one image per entry and its xywh boxes, in both splits."""
    (folder / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (folder / split).mkdir()
        images, annotations = [], []
        for i, (name, found) in enumerate(boxes.items()):
            Image.new("RGB", (size, size), (40 * i % 255, 90, 200)).save(folder / split / name)
            images.append({"id": i + 1, "file_name": name, "width": size, "height": size})
            for box in found:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": i + 1,
                        "category_id": 7,
                        "bbox": box,
                        "area": box[2] * box[3],
                        "iscrowd": 0,
                    }
                )
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 7, "name": "thing"}],
        }
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
