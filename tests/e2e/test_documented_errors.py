"""Errors that the page on troubleshooting quotes about data, each by a command that it names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Command, write_coco
from PIL import Image

PAGE = Path(__file__).resolve().parents[2] / "docs/troubleshooting.md"
BOXES = {"a.png": [[1.0, 1.0, 20.0, 20.0]], "b.png": [[5.0, 5.0, 20.0, 20.0]]}


def pictures(root: Path, *names: str) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (64, 64)).save(root / name)


def nothing(root: Path) -> tuple[str, ...]:
    return ("data=custom",)


def no_folder(root: Path) -> tuple[str, ...]:
    return ("data=custom", f"data.root={root}")


def no_annotations(root: Path) -> tuple[str, ...]:
    pictures(root, "a.png", "b.png")
    return ("data=custom", f"data.root={root}")


def two_formats(root: Path) -> tuple[str, ...]:
    write_coco(root, BOXES)
    (root / "train2017/a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    return ("data=custom", f"data.root={root}")


def no_split(root: Path) -> tuple[str, ...]:
    write_coco(root, BOXES)
    return ("data=custom", f"data.root={root}", "data.source.val=dev")


def no_names(root: Path) -> tuple[str, ...]:
    pictures(root, "a.png")
    (root / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    return ("data=custom", f"data.root={root}")


def yolo(root: Path, line: str, count: int) -> tuple[str, ...]:
    names = [f"{i}.png" for i in range(10)]
    for split in ("train", "val"):
        pictures(root / split, *names)
        for i in range(10):
            text = line if i < count else "0 0.5 0.5 0.1 0.1\n"
            (root / split / f"{i}.txt").write_text(text)
    (root / "classes.txt").write_text("cup\n")
    return ("data=custom", f"data.root={root}")


def broken_images(root: Path) -> tuple[str, ...]:
    words = yolo(root, "", 0)
    for i in range(6):
        (root / f"train/{i}.png").write_bytes(b"")
    return words


def lost_boxes(root: Path) -> tuple[str, ...]:
    return yolo(root, "5 0.5 0.5 0.1 0.1\n", 9)


def other_tool(root: Path) -> tuple[str, ...]:
    pictures(root, "a.png")
    (root / "annotations.xml").write_text("<annotations><version>1.1</version></annotations>")
    return ("data=custom", f"data.root={root}")


def changed(root: Path, change: Callable[[dict], object], *splits: str) -> tuple[str, ...]:
    write_coco(root, BOXES)
    for split in splits or ("train2017",):
        path = root / f"annotations/instances_{split}.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    return ("data=coco", f"data.root={root}")


def no_boxes(root: Path) -> tuple[str, ...]:
    return changed(root, lambda c: c["annotations"].clear())


def panoptic(root: Path) -> tuple[str, ...]:
    return changed(root, lambda c: c["annotations"][0].update(segments_info=[]))


def other_classes(root: Path) -> tuple[str, ...]:
    return changed(root, lambda c: c["categories"][0].update(name="cat"))


def unknown_category(root: Path) -> tuple[str, ...]:
    return changed(root, lambda c: c["annotations"][0].update(category_id=9))


def short_box(root: Path) -> tuple[str, ...]:
    return changed(root, lambda c: c["annotations"][0].update(bbox=[1, 2, 3]))


CASES: dict[str, tuple[Callable[[Path], tuple[str, ...]], tuple[str, ...]]] = {
    # words of the page's line: what makes it, and the commands that say it
    "data.root is not set": (nothing, ("inspect_data", "train")),
    "set data.root to the folder of your data": (no_folder, ("inspect_data", "train")),
    "YOLO text or LabelMe JSON: set data.root": (no_annotations, ("inspect_data", "train")),
    "choose one with data.source.format=": (two_formats, ("inspect_data", "train")),
    "has no images for the split": (no_split, ("inspect_data", "train")),
    "has YOLO labels but no class names": (no_names, ("inspect_data", "train")),
    "images of a split of": (broken_images, ("inspect_data", "train")),
    "boxes of a split of": (lost_boxes, ("inspect_data", "train")),
    "this is CVAT's own format": (other_tool, ("inspect_data", "train")),
    "nothing is annotated: annotate some images": (no_boxes, ("train",)),
    "COCO's panoptic segments": (panoptic, ("inspect_data", "train")),
    "class lists differ": (other_classes, ("train",)),
    "which 'categories' does not have": (unknown_category, ("train",)),
    "it must be four finite numbers": (short_box, ("train",)),
}


def test_every_error_about_data_is_here() -> None:
    section = PAGE.read_text("utf-8").partition("## Data")[2].partition("\n## ")[0]
    quoted = re.findall(r"^error: (.*)$", section, re.MULTILINE)
    elsewhere = "no usable segmentation"  # of masks and copy-paste, in the tests of segmentations
    missing = [q for q in quoted if elsewhere not in q and not any(words in q for words in CASES)]
    assert missing == []
    assert all(any(words in q for q in quoted) for words in CASES)


@pytest.mark.parametrize(("words", "script"), [(w, s) for w in CASES for s in CASES[w][1]])
def test_error_is_said_by_its_command(
    words: str, script: str, command: Command, tmp_path: Path
) -> None:
    given = CASES[words][0](tmp_path / "pictures")
    if script == "inspect_data":
        done = command("scripts/inspect_data.py", *given)
    else:
        done = command("train.py", *given, "data.num_workers=0", "trainer=cpu", "logger=[csv]")
    assert done.returncode == 2, done.stderr[-2000:]
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert words in errors[0]
    assert "Traceback" not in done.stderr
