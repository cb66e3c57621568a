"""From a folder of one's own to a fine-tuned model, in the commands of a user."""

import json
from pathlib import Path

from commands import SMALL, Command
from PIL import Image

from codetr.checkpoints.files import read_detector_file

MODEL = (
    *[option for option in SMALL if not option.startswith("data.source")],
    "model=co_dino_tiny",
    "data.num_workers=0",
    "augmentation=flip",
)


def write_voc(root: Path, objects: dict[str, str], test: str) -> None:
    """A picture of 64 pixels per entry with one box of the class; ``test`` is that split."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for i, (name, label) in enumerate(objects.items()):
        Image.new("RGB", (64, 64), (40 * i % 255, 90, 200)).save(root / f"JPEGImages/{name}.jpg")
        (root / f"Annotations/{name}.xml").write_text(
            f"<annotation><object><name>{label}</name><bndbox><xmin>9</xmin><ymin>9</ymin>"
            f"<xmax>{30 + i}</xmax><ymax>40</ymax></bndbox></object></annotation>"
        )
    names = [name for name in objects if name != test]
    (root / "ImageSets/Main/train.txt").write_text("\n".join(names))
    (root / "ImageSets/Main/test.txt").write_text(test)


def test_from_a_voc_folder_to_a_model_with_other_classes(command: Command, tmp_path: Path) -> None:
    write_voc(tmp_path / "cells", dict.fromkeys("abcdef", "red") | {"c": "white"}, test="f")
    root = f"data.root={tmp_path / 'cells'}"

    done = command("scripts/inspect_data.py", "data=custom", root, "out=look.html")
    assert done.returncode == 0, done.stderr
    assert "split 5 images at random, 20% for val" in done.stdout
    assert "data:image/png;base64," in (tmp_path / "look.html").read_text()

    done = command("train.py", "data=custom", root, *MODEL, "debug=fast", "name=first")
    assert done.returncode == 0, done.stderr
    assert "recognised as Pascal VOC XML" in done.stdout

    write_voc(tmp_path / "more", {"a": "red", "b": "blue", "c": "green", "d": "red"}, test="d")
    checkpoint = f"checkpoint={tmp_path / 'runs/first/best.ckpt'}"
    done = command(
        "train.py",
        "experiment=finetune",
        f"data.root={tmp_path / 'more'}",
        checkpoint,
        *MODEL,
        "model.checkpointed=0",
        "trainer.effective_batch=2",
        "schedule.epochs.at_most=12",
        "debug=fast",
        "name=second",
    )
    assert done.returncode == 0, done.stderr
    assert "12 epochs at most for 2 training images" in done.stdout
    content = read_detector_file(tmp_path / "runs/second/best.ckpt")
    assert content.record.classes.names == ("blue", "green", "red")
    assert content.record.config["schedule"]["epochs"] == 12

    checkpoint = f"checkpoint={tmp_path / 'runs/second/best.ckpt'}"
    options = ("data=custom", f"data.root={tmp_path / 'more'}", "data.source.val=test")
    done = command("eval.py", checkpoint, *options, "trainer=cpu", "name=test")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "runs/test/predictions.json").read_text())
    assert len({p["image_id"] for p in found}) == 1


def test_errors_of_a_folder_are_one_line(command: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = command("scripts/inspect_data.py", "data=custom", f"data.root={tmp_path / 'empty'}")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: {tmp_path / 'empty'} has 0 images among 0 files")
    done = command("scripts/inspect_data.py", "data=custom")
    assert done.returncode == 2
    assert "data.root is not set" in done.stderr
