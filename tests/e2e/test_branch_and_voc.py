"""Branches of a trained checkpoint, and VOC annotations made into a COCO folder."""

import json
from pathlib import Path

from commands import Command
from PIL import Image


def test_auxiliary_branch_is_evaluated(
    command: Command, small: tuple[str, ...], tmp_path: Path
) -> None:
    done = command("train.py", *small, "debug=fast", "callbacks=default", "name=a")
    assert done.returncode == 0, done.stderr[-2000:]
    told = (f"checkpoint={tmp_path}/runs/a/best.ckpt", "evaluation.branch=atss")
    done = command("eval.py", *told, "trainer=cpu", "name=atss")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Average Precision" in done.stdout
    found = json.loads((tmp_path / "runs/atss/predictions.json").read_text())
    assert len(found) == 2 * 100, "the head's own limit, not the main branch's"


def write_voc(folder: Path) -> None:
    (folder / "Annotations").mkdir(parents=True)
    (folder / "JPEGImages").mkdir()
    (folder / "ImageSets/Main").mkdir(parents=True)
    boxes = {"a": ["cell 4 5 24 35", "cell 7 7 7 9"], "b": ["atom 0 0 10 10"]}
    for name, found in boxes.items():
        Image.new("RGB", (64, 48)).save(folder / f"JPEGImages/{name}.jpg")
        objects = ""
        for box in found:
            label, *sides = box.split()
            tags = zip(("xmin", "ymin", "xmax", "ymax"), sides, strict=True)
            inner = "".join(f"<{tag}>{side}</{tag}>" for tag, side in tags)
            objects += f"<object><name>{label}</name><bndbox>{inner}</bndbox></object>"
        size = "<size><width>64</width><height>48</height></size>"
        (folder / f"Annotations/{name}.xml").write_text(
            f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"
        )
    (folder / "ImageSets/Main/train.txt").write_text("a\n")
    (folder / "ImageSets/Main/val.txt").write_text("b\n")


def test_voc_becomes_coco(command: Command, tmp_path: Path) -> None:
    write_voc(tmp_path / "voc")
    done = command("scripts/voc_to_coco.py", "voc", "coco")
    assert done.returncode == 0, done.stderr
    assert "left out a box without an area: 7 7 7 9" in done.stdout
    train = json.loads((tmp_path / "coco/annotations/instances_train2017.json").read_text())
    assert [c["name"] for c in train["categories"]] == ["atom", "cell"]
    (box,) = train["annotations"]
    assert (box["bbox"], box["category_id"], box["area"]) == ([4, 5, 20, 30], 2, 600)
    assert (tmp_path / "coco/train2017" / train["images"][0]["file_name"]).is_file()
    (tmp_path / "voc/Annotations/a.xml").write_text("<annotation>")
    done = command("scripts/voc_to_coco.py", "voc", "other")
    assert done.returncode == 2
    assert "a.xml: not a readable VOC annotation" in done.stderr
