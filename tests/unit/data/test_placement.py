"""Declared and real sizes that contradict: boxes lie on their objects, or it is asked."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from codetr.analysis.inspect_data import inspect_data
from codetr.data.augment import Chain
from codetr.data.custom import CustomFolder
from codetr.data.datamodule import CocoDataModule
from codetr.data.images import Geometry
from codetr.data.placement import Claim, place
from codetr.data.sources import CocoFolder
from codetr.errors import UserError
from codetr.evaluation.ground_truth import read_ground_truth

STORED_WH = (120, 80)
FAR = (80, 10, 110, 40)  # xyxy; beyond an upright width of 80
NEAR = (10, 10, 40, 30)
KINDS = ("coco", "custom coco", "custom voc")


def photograph(path: Path, box: tuple[int, ...], orientation: int, format: str = "PNG") -> None:
    """A dark picture with a white object at ``box`` of what is stored."""
    pixels = np.zeros((STORED_WH[1], STORED_WH[0], 3), np.uint8)
    x0, y0, x1, y1 = box
    pixels[y0:y1, x0:x1] = 255
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format=format, exif=exif)


def annotate(
    kind: str, root: Path, sizes: dict[str, tuple[int, int]], boxes: dict[str, tuple[float, ...]]
) -> None:
    """Declared sizes and boxes of a/0.png and so on, by split."""
    for split in ("train", "val"):
        names = [name for name in boxes if name.startswith(split)]
        if kind == "custom voc":
            for name in names:
                (width, height), (x0, y0, x1, y1) = sizes[name], boxes[name]
                corners = zip(("xmin", "ymin", "xmax", "ymax"), (x0 + 1, y0 + 1, x1, y1))  # noqa: B905
                texts = "".join(f"<{key}>{value}</{key}>" for key, value in corners)
                (root / name).with_suffix(".xml").write_text(
                    f"<annotation><size><width>{width}</width><height>{height}</height></size>"
                    f"<object><name>cup</name><bndbox>{texts}</bndbox></object></annotation>"
                )
            continue
        content: dict[str, Any] = {"images": [], "annotations": []}
        content["categories"] = [{"id": 3, "name": "cup"}]
        for i, name in enumerate(names):
            (width, height), (x0, y0, x1, y1) = sizes[name], boxes[name]
            file = name.split("/")[1]
            image = {"id": i, "file_name": file, "width": width, "height": height}
            box = [x0, y0, x1 - x0, y1 - y0]
            corners = [[x0, y0, x1, y0, x1, y1, x0, y1]]
            entry = {"id": i, "image_id": i, "category_id": 3, "bbox": box, "iscrowd": 0}
            content["images"].append(image)
            content["annotations"].append(entry | {"segmentation": corners, "area": 5})
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))


def opened(kind: str, root: Path, boxes: str = "auto") -> CocoDataModule:
    given = {f"{s}_annotations": f"{s}/_annotations.coco.json" for s in ("train", "val")}
    source = CocoFolder(**given, train_images="train", val_images="val")
    chosen = source if kind == "coco" else CustomFolder(cache=root.parent / "cache")
    module = CocoDataModule(
        root, chosen, Chain(), Chain(), num_workers=0, boxes=boxes, derived=root.parent / "derived"
    )
    module.setup("fit")
    return module


def on_their_objects(module: CocoDataModule) -> bool:
    """Whether each box is where the picture is white, and for evaluation, too."""
    truths = read_ground_truth(module.val_annotations, module.classes)
    for dataset in (module.train_dataset, module.eval_dataset):
        for i in range(len(dataset)):
            sample = dataset[i]
            (box,) = sample.targets.boxes.tolist()
            x0, y0, x1, y1 = (round(v) for v in box)
            white = sample.image[0] > 127
            if int(white.sum()) != int(white[y0:y1, x0:x1].sum()) or not white[y0:y1, x0:x1].all():
                return False
            if dataset is module.eval_dataset:
                (truth,) = truths[sample.image_id].boxes_xywh_px.tolist()
                if truth != pytest.approx([box[0], box[1], box[2] - box[0], box[3] - box[1]]):
                    return False
    return True


def turned(kind: str, root: Path, boxes: dict[str, tuple[int, ...]], orientation: int = 6) -> None:
    """Photographs annotated as they are stored."""
    for name, box in boxes.items():
        photograph(root / name, box, orientation)
    annotate(kind, root, dict.fromkeys(boxes, STORED_WH), boxes)


TWO = ("train/0.png", "train/1.png", "val/0.png")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_of_the_stored_picture_turn_with_it(
    kind: str, orientation: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "root"
    turned(kind, root, dict.fromkeys(TWO, FAR), orientation)
    with caplog.at_level(logging.INFO):
        module = opened(kind, root)
    assert on_their_objects(module)
    said = [r.message for r in caplog.records if "differ from their annotations" in r.message]
    assert len(said) == (2 if kind == "coco" else 1)  # one for each split, or for all
    assert all("data.boxes=stored" in line for line in said)
    again = CocoDataModule(
        root, module.source, Chain(), Chain(), num_workers=0, derived=tmp_path / "derived"
    )
    again.setup("test")
    assert again.val_annotations == module.val_annotations
    if kind != "custom voc":
        entry = json.loads(module.val_annotations.read_text())["annotations"][0]
        xs, ys = entry["segmentation"][0][::2], entry["segmentation"][0][1::2]
        x, y, width, height = entry["bbox"]
        assert (min(xs), min(ys), max(xs), max(ys)) == (x, y, x + width, y + height)


@pytest.mark.parametrize("kind", KINDS)
def test_one_box_decides_for_all_of_a_kind_in_both_splits(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    turned(kind, root, {"train/0.png": FAR, "train/1.png": NEAR, "val/0.png": NEAR})
    assert on_their_objects(opened(kind, root))


@pytest.mark.parametrize("kind", KINDS)
def test_where_both_readings_fit_it_is_asked(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    turned(kind, root, dict.fromkeys(TWO, NEAR))
    with pytest.raises(
        UserError, match=r"data\.boxes=upright \(.*\) or data\.boxes=stored"
    ) as error:
        opened(kind, root)
    assert "0.png" in str(error.value)
    assert on_their_objects(opened(kind, root, "stored"))
    boxes = opened(kind, root, "upright").train_dataset[0].targets.boxes
    assert boxes.tolist() == [list(NEAR)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_upright_size_written_the_wrong_way_round(kind: str, tmp_path: Path) -> None:
    """Boxes as they are seen, beyond the width of what is stored: only the size is wrong."""
    root = tmp_path / "root"
    for name in TWO:
        photograph(root / name, NEAR, 6)
    seen = dict.fromkeys(TWO, (10, 85, 30, 118))
    annotate(kind, root, dict.fromkeys(TWO, STORED_WH), seen)
    module = opened(kind, root)
    assert module.train_dataset[0].targets.boxes.tolist() == [[10, 85, 30, 118]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [0.5, 2])
def test_images_resized_since_they_were_annotated(
    kind: str, factor: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "root"
    for name in TWO:
        photograph(root / name, FAR, 1)
    told = tuple(int(side / factor) for side in STORED_WH)
    boxes = {name: tuple(v / factor for v in FAR) for name in TWO}
    annotate(kind, root, dict.fromkeys(TWO, told), boxes)  # type: ignore[arg-type]
    if factor == 2:  # boxes of a smaller picture fit a larger one, too
        with pytest.raises(UserError, match=r"data\.boxes=upright \(.*\) or data\.boxes=scaled"):
            opened(kind, root)
        assert on_their_objects(opened(kind, root, "scaled"))
        return
    with caplog.at_level(logging.INFO):
        assert on_their_objects(opened(kind, root))
    assert "boxes were scaled to the file" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_that_fit_nothing_are_asked_about(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    turned(kind, root, dict.fromkeys(TWO, NEAR))
    annotate(kind, root, dict.fromkeys(TWO, STORED_WH), dict.fromkeys(TWO, (10, 10, 300, 300)))
    with pytest.raises(UserError, match="boxes fit neither"):
        opened(kind, root)


def test_exchanged_sides_without_an_orientation_have_one_interpretation() -> None:
    geometry = Geometry((80, 120), 1)
    corners = np.array([[10.0, 10, 300, 300]])
    claim = Claim(file="a", declared_wh=(80, 120), corners=corners, geometry=geometry)
    with pytest.raises(UserError, match=r"boxes do not fit: set data\.boxes=upright") as error:
        place([claim])
    assert "stored" not in str(error.value)


def test_shares_of_the_stored_picture_turn_where_it_is_said(tmp_path: Path) -> None:
    root = tmp_path / "root"
    x0, y0, x1, y1 = FAR
    shares = ((x0 + x1) / 240, (y0 + y1) / 160, (x1 - x0) / 120, (y1 - y0) / 80)
    for name in TWO:
        photograph(root / name, FAR, 6)
        (root / name).with_suffix(".txt").write_text("0 " + " ".join(map(str, shares)))
    (root / "classes.txt").write_text("cup\n")
    assert not on_their_objects(opened("yolo", root))
    assert on_their_objects(opened("yolo", root, "stored"))


@pytest.mark.parametrize("kind", KINDS)
def test_reported_photographs(kind: str, shared: Path, tmp_path: Path) -> None:
    root = shared / "data/reports/exif_stored_orientation"
    given = {f"{s}_annotations": f"annotations/instances_{s}.json" for s in ("train", "val")}
    source = CocoFolder(**given, train_images="train", val_images="val")
    chosen = source if kind == "coco" else CustomFolder(cache=tmp_path)
    module = CocoDataModule(root, chosen, Chain(), Chain(), num_workers=0, derived=tmp_path / "d")
    module.setup("fit")
    assert module.train_dataset[0].targets.boxes.tolist() == [[40, 80, 70, 110]]
    page = inspect_data("reported", chosen(root), derived=tmp_path / "d")
    assert all("the same image" in problem for problem in page.problems)
    assert sum("boxes were taken as pixels of the stored image" in r for r in page.remarks) >= 1


def test_a_reading_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.boxes=exif: choose auto, upright"):
        opened("coco", tmp_path, "exif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_points_turn_as_pillow_turns_pictures(orientation: int, tmp_path: Path) -> None:
    from codetr.data.images import read_geometry, read_image

    photograph(tmp_path / "a.png", (5, 7, 6, 8), orientation)
    geometry = read_geometry(tmp_path / "a.png")
    claim = Claim(file="a", declared_wh=None, corners=np.array([[5.0, 7, 6, 8]]), geometry=geometry)
    (placement,), _ = place([claim], "stored")
    x0, y0, x1, y1 = placement.corners(claim.corners)[0].astype(int)
    assert (x1 - x0, y1 - y0) == (1, 1)
    assert (read_image(tmp_path / "a.png")[0] > 0).nonzero().tolist() == [[y0, x0]]


def test_sizes_that_differ_by_rounding_are_no_contradiction() -> None:
    geometry = Geometry((801, 1333), 1)
    claim = Claim(file="a", declared_wh=(1333, 800), corners=np.zeros((0, 4)), geometry=geometry)
    assert claim.contradiction is None
