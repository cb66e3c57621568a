"""Data of the kinds that public bug reports are about: read as it is meant, or named."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from custom_folders import (
    CELLS,
    HEIGHT,
    WIDTH,
    coco_content,
    write_images,
    write_voc,
    write_yolo,
)
from PIL import Image

from codetr.analysis.inspect_data import inspect_data
from codetr.data.augment import Chain
from codetr.data.custom import CustomFolder
from codetr.data.datamodule import CocoDataModule
from codetr.data.formats.tree import split_of_folders, split_of_name
from codetr.data.sources import CocoFolder, Source
from codetr.errors import UserError

NAMES = {3: "cup", 9: "oil"}
BOXES = {
    stem: [("cup" if name == "cup" else "oil", box) for name, box in boxes]
    for stem, boxes in CELLS.items()
}
PARTS = {"train": "abc", "val": "de"}
Content = dict[str, Any]


@dataclass(frozen=True)
class Expected:
    """``boxes`` of both splits, or the ``error``; ``said``: what the log must hold."""

    boxes: tuple[int, int] | None = None
    error: str = ""
    said: str = ""


FINE = Expected((3, 3))


def of_all(key: str, change: Callable[[Content], object]) -> Callable[[Content], object]:
    """Change every entry of a list."""
    return lambda content: [change(entry) for entry in content[key]]


def of_first(key: str, change: Callable[[Content], object]) -> Callable[[Content], object]:
    return lambda content: change(content[key][0]) if content[key] else None


def numbered(new: Mapping[int, Any]) -> Callable[[Content], object]:
    """Other ids of categories."""

    def change(content: Content) -> None:
        for entry in content["categories"]:
            entry["id"] = new[entry["id"]]
        for entry in content["annotations"]:
            entry["category_id"] = new[entry["category_id"]]

    return change


def as_corners(entry: Content) -> None:
    x, y, width, height = entry["bbox"]
    entry["bbox"] = [x, y, x + width, y + height]


def as_shares(entry: Content) -> None:
    x, y, width, height = entry["bbox"]
    entry["bbox"] = [x / WIDTH, y / HEIGHT, width / WIDTH, height / HEIGHT]


def boxed(value: Any) -> Callable[[Content], object]:
    return lambda entry: entry.update(bbox=value)


RLE = {"size": [HEIGHT, WIDTH], "counts": [5, 10, HEIGHT * WIDTH - 15]}
NOT_FOUR = "it must be four finite numbers"
COCO: dict[str, tuple[Callable[[Content], object], Expected, Expected]] = {
    # what is changed in both files; what data=custom and what data=coco make of it
    "ids from 0": (numbered({3: 0, 9: 1}), FINE, FINE),
    "ids with gaps": (numbered({3: 0, 9: 1000}), FINE, FINE),
    "ids below 0": (numbered({3: -1, 9: 5}), FINE, FINE),
    "ids as texts and numbers": (numbered({3: "1", 9: 2}), FINE, FINE),
    "ids that are names": (
        numbered({3: "cup", 9: "oil"}),
        Expected(error="needs an integer id"),
        Expected(error="needs an integer id"),
    ),
    "annotation ids stand twice": (
        of_all("annotations", lambda entry: entry.update(id=1)),
        Expected((3, 3), said="has a duplicate id; both were kept"),
        FINE,
    ),
    "no annotation ids": (of_all("annotations", lambda entry: entry.pop("id")), FINE, FINE),
    "an image stands twice": (
        lambda content: content["images"].append(dict(content["images"][0])),
        Expected((3, 3), said="has a duplicate id: make the ids unique; it was skipped"),
        Expected(error="has a duplicate id: make the ids unique"),
    ),
    "a file is two images": (
        lambda content: content["images"].append({**content["images"][0], "id": 999}),
        Expected((3, 3), said="a.png occurs as 2 images of the split"),
        FINE,
    ),
    "no annotations": (
        lambda content: content["annotations"].clear(),
        Expected(error="nothing is annotated: annotate some images"),
        Expected(error="nothing is annotated: annotate some images"),
    ),
    "a box of no image": (
        of_first("annotations", lambda entry: entry.update(image_id=777)),
        Expected((2, 2), said="has image_id 777, which is not a usable image of the file"),
        Expected(error="has image_id 777, which is not a usable image of the file"),
    ),
    "a negative side": (
        of_first("annotations", boxed([20, 20, -5, -5])),
        Expected((2, 2), said="has no area; it was skipped"),
        Expected((2, 2)),
    ),
    "no side": (of_first("annotations", boxed([2, 2, 0, 5])), Expected((2, 2)), Expected((2, 2))),
    "corners": (
        of_all("annotations", as_corners),
        Expected(error="all fit if they are read as two corners"),
        Expected(error="all fit if they are read as two corners"),
    ),
    "annotation ids stand twice as texts": (
        of_all("annotations", lambda entry: entry.update(id="007")),
        Expected((3, 3), said="annotation '007' has a duplicate id; both were kept"),
        FINE,
    ),
    "an image stands twice, once as a text": (
        lambda content: content["images"].append({**content["images"][1], "id": "07"}),
        Expected((3, 3), said="image '07' has a duplicate id: make the ids unique"),
        Expected(error="image '07' in"),
    ),
    "shares": (
        of_all("annotations", as_shares),
        Expected(error="relative to its width and height"),
        Expected(error="relative to its width and height"),
    ),
    "a box as an object": (
        of_all("annotations", lambda entry: entry.update(bbox={"x": 1})),
        Expected(error=NOT_FOUR),
        Expected(error=NOT_FOUR),
    ),
    "a turned box": (
        of_all("annotations", lambda entry: entry["bbox"].append(30.0)),
        Expected(error=NOT_FOUR),
        Expected(error=NOT_FOUR),
    ),
    "a category of nothing": (
        of_first("annotations", lambda entry: entry.update(category_id=None)),
        Expected((2, 2), said="has category_id None: it must be an integer"),
        Expected(error="has category_id None: it must be an integer"),
    ),
    "a category by its name": (
        of_all("annotations", lambda entry: entry.update(category_id="cup")),
        Expected(error="has category_id 'cup': it must be an integer"),
        Expected(error="has category_id 'cup': it must be an integer"),
    ),
    "NaN": (
        of_first("annotations", boxed([float("nan"), 1, 5, 5])),
        Expected((2, 2), said=NOT_FOUR),
        Expected(error=NOT_FOUR),
    ),
    "1e400": (
        of_first("annotations", boxed([10**400, 1, 5, 5])),
        Expected((2, 2), said=NOT_FOUR),
        Expected(error=NOT_FOUR),
    ),
    "run lengths": (
        of_all("annotations", lambda entry: entry.update(segmentation=RLE)),
        FINE,
        FINE,
    ),
    "run lengths and no box": (
        of_all("annotations", lambda e: (e.update(segmentation=RLE), e.pop("bbox"))),
        Expected((3, 3), said="3 objects without bbox got that of their outline"),
        Expected((3, 3), said="3 objects without bbox got that of their outline"),
    ),
    "no outline": (of_all("annotations", lambda e: e.update(segmentation=[])), FINE, FINE),
    "an outline of nothing": (
        of_all("annotations", lambda e: e.update(segmentation=None)),
        FINE,
        FINE,
    ),
    "an empty outline": (of_all("annotations", lambda e: e.update(segmentation={})), FINE, FINE),
    "backslashes": (
        of_all("images", lambda e: e.update(file_name="images\\" + e["file_name"])),
        FINE,
        FINE,
    ),
    "a prefix that stands twice": (
        of_all("images", lambda e: e.update(file_name="images/images/" + e["file_name"])),
        FINE,
        FINE,
    ),
    "another machine": (
        of_all("images", lambda e: e.update(file_name="/home/them/" + e["file_name"])),
        FINE,
        FINE,
    ),
    "no sizes": (
        of_all("images", lambda e: (e.pop("width"), e.pop("height"))),
        FINE,
        Expected(error="has no 'height': add it or remove the image"),
    ),
    "sizes exchanged": (
        of_all("images", lambda e: e.update(width=HEIGHT, height=WIDTH)),
        Expected((3, 3), said="boxes were taken as pixels of the upright file"),
        Expected((3, 3), said="boxes were taken as pixels of the upright file"),
    ),
    "a name stands twice": (
        lambda content: content["categories"].append({"id": 12, "name": "cup"}),
        Expected((3, 3), said="data.classes.merge={cup: [cup]}"),
        Expected((3, 3), said="data.classes.merge={cup: [cup]}"),
    ),
    "a name in another case": (
        lambda content: content["categories"].append({"id": 12, "name": "Cup"}),
        Expected((3, 3), said="data.classes.merge={cup: [cup, Cup]}"),
        Expected((3, 3), said="data.classes.merge={cup: [cup, Cup]}"),
    ),
    "no categories": (
        lambda content: content.pop("categories"),
        Expected(error="has no list 'categories'"),
        Expected(error="has no list 'categories'"),
    ),
    "categories of nothing": (
        lambda content: content["categories"].clear(),
        Expected(error="has no categories: add at least one class"),
        Expected(error="has no categories: add at least one class"),
    ),
    "key points": (
        of_all("annotations", lambda e: e.update(keypoints=[1, 2, 2], num_keypoints=1)),
        FINE,
        FINE,
    ),
}


def write_coco(root: Path, change: Callable[[Content], object]) -> None:
    (root / "annotations").mkdir(parents=True)
    for split, stems in PARTS.items():
        write_images(root / split, [f"{stem}.png" for stem in stems])
        content = coco_content({f"{stem}.png": BOXES[stem] for stem in stems}, NAMES)
        change(content)
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))


COCO_FOLDER = CocoFolder(
    train_annotations="annotations/instances_train.json",
    train_images="train",
    val_annotations="annotations/instances_val.json",
    val_images="val",
)


def require(
    root: Path, source: Source, expected: Expected, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    """Train on both splits as the commands do, and look at the data."""
    log.set_level(logging.INFO)
    module = CocoDataModule(
        root, source, Chain(), Chain(), num_workers=0, derived=tmp_path / "derived"
    )
    if expected.error:
        with pytest.raises(UserError) as caught:
            module.setup("fit")
        assert expected.error in str(caught.value)
        assert "\n" not in str(caught.value)
        return
    module.setup("fit")
    datasets = (module.train_dataset, module.eval_dataset)
    assert tuple(sum(len(d[i].targets) for i in range(len(d))) for d in datasets) == expected.boxes
    assert expected.said in log.text
    page = inspect_data("it", source(root), 0, derived=tmp_path / "derived")
    counts = {row[0]: row[1:] for row in page.table}["boxes"]
    assert tuple(map(int, counts)) == expected.boxes


@pytest.mark.parametrize("data", ["custom", "coco"])
@pytest.mark.parametrize("case", COCO)
def test_coco(case: str, data: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    change, custom, coco = COCO[case]
    write_coco(tmp_path / "root", change)
    source = COCO_FOLDER if data == "coco" else CustomFolder(cache=tmp_path / "cache")
    require(tmp_path / "root", source, coco if data == "coco" else custom, tmp_path, caplog)


def test_corners_are_read_where_a_setting_says_so(tmp_path: Path) -> None:
    for name, change in (("corners", of_all("annotations", as_corners)), ("own", str)):
        write_coco(tmp_path / name, change)
    told = CustomFolder(cache=tmp_path / "cache", box_format="xyxy")(tmp_path / "corners")
    own = CustomFolder(cache=tmp_path / "cache")(tmp_path / "own")
    for split in ("train", "val"):
        contents = [json.loads(getattr(s, split).annotations.read_text()) for s in (told, own)]
        assert contents[0]["annotations"] == contents[1]["annotations"]


@pytest.mark.parametrize("data", ["custom", "coco"])
def test_boxes_that_look_like_corners_are_kept_where_a_setting_says_so(
    data: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_coco(tmp_path / "root", of_all("annotations", as_corners))
    source: Source = replace(COCO_FOLDER, box_format="xywh")
    if data == "custom":
        source = CustomFolder(cache=tmp_path / "cache", box_format="xywh")
    require(tmp_path / "root", source, FINE, tmp_path, caplog)
    with pytest.raises(UserError, match=r"data.source.box_format=xyxy: choose auto, xywh"):
        replace(COCO_FOLDER, box_format="xyxy")


@pytest.mark.parametrize("data", ["custom", "coco"])
def test_ids_of_images_are_written_as_they_are_read(data: str, tmp_path: Path) -> None:
    def change(content: Content) -> None:
        for entry in content["images"]:
            entry["id"] = f"{entry['id']:03}"

    write_coco(tmp_path / "root", change)
    source = COCO_FOLDER if data == "coco" else CustomFolder(cache=tmp_path / "cache")
    module = CocoDataModule(tmp_path / "root", source, Chain(), Chain(), num_workers=0)
    module.setup("fit")
    annotations = module.train_dataset.source.annotations
    assert annotations.written_ids == ("000", "007", "014")
    assert annotations.image_ids == (0, 7, 14)
    assert len(annotations.boxes) == 3


@pytest.mark.parametrize("name", ["valid", "validation", "dev", "devel", "eval", "minival", "VAL"])
def test_names_of_the_second_split(name: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_coco(root, lambda content: None)
    (root / "val").rename(root / name)
    (root / "annotations/instances_val.json").rename(root / f"annotations/instances_{name}.json")
    splits = CustomFolder(cache=tmp_path / "cache")(root)
    assert len(json.loads(splits.train.annotations.read_text())["images"]) == 3
    assert len(json.loads(splits.val.annotations.read_text())["images"]) == 2


@pytest.mark.parametrize("name", ["dev", "minival"])
def test_a_spare_name_beside_val_is_another_split(name: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_coco(root, lambda content: None)
    annotations = root / "annotations"
    (annotations / f"instances_{name}.json").write_bytes(
        (annotations / "instances_train.json").read_bytes()
    )
    splits = CustomFolder(cache=tmp_path / "cache")(root)
    assert len(json.loads(splits.val.annotations.read_text())["images"]) == 2
    chosen = CustomFolder(cache=tmp_path / "cache", val=name)(root)
    assert len(json.loads(chosen.val.annotations.read_text())["images"]) == 3


def test_a_spare_name_of_everything_names_no_split(tmp_path: Path) -> None:
    root = tmp_path / "root"
    parts = {"dev": {s: BOXES[s] for s in "abcde"}}
    write_yolo(root, parts, list(NAMES.values()))
    (root / "data.yaml").write_text("names: [cup, oil]\n")
    splits = CustomFolder(cache=tmp_path / "cache")(root)
    counts = [
        len(json.loads(s.annotations.read_text())["images"]) for s in (splits.train, splits.val)
    ]
    assert counts == [4, 1]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("test-dev2017", "test"),
        ("eval_train", "train"),
        ("dev", "dev"),
        ("train_val", None),
        ("developers", None),
    ],
)
def test_usual_words_of_splits_come_first(name: str, split: str | None) -> None:
    assert split_of_name(name) == split
    assert split_of_folders(f"{name}/dev/a.png") == (split or "dev")


def test_images_of_no_split_are_counted(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_coco(root, lambda content: None)
    (root / "annotations/instances_val.json").rename(root / "annotations/instances_more.json")
    remarks = CustomFolder(cache=tmp_path / "cache")(root).remarks
    assert any("2 images belong to no split and are not used" in line for line in remarks)
    splits = CustomFolder(cache=tmp_path / "cache", val="unsplit")(root)
    assert not any("belong to no split" in line for line in splits.remarks)


@pytest.mark.parametrize(
    ("stems", "said"),
    [("a", "which was skipped, since the image ('a.png') is missing"), ("abc", "none of the 3")],
)
def test_missing_images_are_named_as_the_reason(stems: str, said: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_coco(root, lambda content: None)
    for stem in stems:
        (root / f"train/{stem}.png").unlink()
    with pytest.raises(UserError, match=re.escape(said)):
        CustomFolder(cache=tmp_path / "cache")(root)


def test_classes_of_one_name_become_one_by_the_setting_that_is_named(tmp_path: Path) -> None:
    root = tmp_path / "root"

    def change(content: Content) -> None:
        content["categories"].append({"id": 12, "name": "cup"})
        content["annotations"][0]["category_id"] = 12

    write_coco(root, change)
    module = CocoDataModule(
        root,
        COCO_FOLDER,
        Chain(),
        Chain(),
        num_workers=0,
        derived=tmp_path / "derived",
        classes={"merge": {"cup": ["cup"]}},
    )
    module.setup("fit")
    assert module.classes.names == ("cup", "oil")
    labels = [module.train_dataset[i].targets.labels.tolist() for i in range(3)]
    assert labels == [[0, 1], [0], []]


def test_files_of_one_name_in_several_folders(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "annotations").mkdir(parents=True)
    for split in PARTS:
        for folder in "xy":
            write_images(root / split / folder, ["i.png"])
        content = coco_content({"x/i.png": BOXES["a"], "y/i.png": BOXES["b"]}, NAMES)
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    splits = CustomFolder(cache=tmp_path / "cache")(root)
    content = json.loads(splits.train.annotations.read_text())
    assert [i["file_name"] for i in content["images"]] == ["train/x/i.png", "train/y/i.png"]
    assert len(content["annotations"]) == 3


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1"])
def test_encodings_of_all_texts(encoding: str, tmp_path: Path) -> None:
    """A byte order mark decides; what is no UTF-8 has to be saved anew."""
    for kind in ("coco", "yolo", "voc"):
        root = tmp_path / kind
        if kind == "coco":
            write_coco(root, lambda content: content["categories"][1].update(name="öl"))
            files = list((root / "annotations").iterdir())
        elif kind == "yolo":
            parts = {part: {s: BOXES[s] for s in stems} for part, stems in PARTS.items()}
            write_yolo(root, parts, list(NAMES.values()))
            (root / "data.yaml").write_text("names: [cup, öl]\n")
            files = [root / "data.yaml", *root.glob("*/labels/*.txt")]
        else:
            write_voc(root, BOXES, PARTS)
            files = list((root / "ImageSets/Main").iterdir())
        for file in files:
            text = file.read_text("utf-8")
            text = json.dumps(json.loads(text), ensure_ascii=False) if kind == "coco" else text
            file.write_bytes(text.replace("\n", "\r\n").encode(encoding))
        source = CustomFolder(cache=tmp_path / "cache")
        if encoding == "latin-1" and kind != "voc":  # whose lists are ASCII here
            with pytest.raises(UserError, match=r"is not UTF-8 text, byte \d+: save it as UTF-8"):
                source(root)
            continue
        content = json.loads(source(root).train.annotations.read_text())
        assert len(content["annotations"]) == 3
        names = [entry["name"] for entry in content["categories"]]
        assert names == (["cup", "oil"] if kind == "voc" else ["cup", "öl"])


def yolo_corners(line: str) -> str:
    x, y, width, height = map(float, line.split()[1:])
    corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return " ".join([line[0], *map(str, corners)])


Lines = Callable[[str], str]
CONFIG = "names: [cup, oil]\nnc: 2\n"
YOLO: dict[str, tuple[Lines, str, Expected]] = {
    # what becomes of every line, of the configuration, and of all
    "as it should be": (str, "", FINE),
    "numbers from 1": (
        lambda line: f"{int(line[0]) + 1}{line[1:]}",
        "",
        Expected(error="labels count from 1, so number the names in a data.yaml"),
    ),
    "numbers from 1, named so": (
        lambda line: f"{int(line[0]) + 1}{line[1:]}",
        "train: train/images\nval: val/images\nnames: {1: cup, 2: oil}\n",
        FINE,
    ),
    "numbers with a point": (lambda line: f"{line[0]}.0{line[1:]}", "", FINE),
    "numbers from 0, named from 1": (
        str,
        "train: train/images\nval: val/images\nnames: {1: cup, 2: oil}\n",
        Expected(error="labels count from 0, so number the names in a data.yaml"),
    ),
    "a first class on no image": (
        lambda line: f"1{line[1:]}",
        "",
        Expected((3, 3), said="only class 0 (cup) is in no image: if labels count from 1"),
    ),
    "corners": (yolo_corners, "", Expected(error="all fit if they are read as two corners")),
    "a confidence": (
        lambda line: f"{line} 0.93",
        "",
        Expected(error="has 6 columns: a box has 5"),
    ),
    "a confidence and a track": (
        lambda line: f"{line} 0.93 4",
        "",
        Expected(error="nor track ids"),
    ),
    "a polygon": (lambda line: f"{line[0]} .1 .1 .5 .1 .5 .5 .1 .5", "", FINE),
    "pixels": (lambda line: f"{line[0]} 10 10 5 6", "", Expected(error="neither pixels nor")),
    "names instead of numbers": (lambda line: f"cup{line[1:]}", "", Expected(error="no number")),
    "commas": (lambda line: line.replace(" ", ","), "", Expected(error="no number")),
    "tabulators": (lambda line: line.replace(" ", "\t"), "", FINE),
    "negative sides": (lambda line: f"{line[0]} .5 .5 -.3 .3", "", Expected(error="no area")),
    "another machine": (
        str,
        f"train: /home/u/ds/train/images\nval: 'C:\\x\\val\\images'\n{CONFIG}",
        FINE,
    ),
    "a path elsewhere": (
        str,
        f"path: ../datasets/x\ntrain: train/images\nval: val/images\n{CONFIG}",
        FINE,
    ),
    "lists of folders": (str, f"train: [train/images]\nval:\n - val/images\n{CONFIG}", FINE),
    "more classes than names": (
        str,
        "train: train/images\nval: val/images\nnames: [cup, oil]\nnc: 5\n",
        Expected((3, 3), said="has nc: 5, but 2 names"),
    ),
    "names that are one text": (
        str,
        "train: train/images\nval: val/images\nnames: cup, oil\n",
        Expected(error="give a list, or number: name"),
    ),
    "validating on training images": (
        str,
        f"train: train/images\nval: train/images\n{CONFIG}",
        Expected((3, 3), said="3 images are in both splits: results will be too good"),
    ),
    "a split that is not there": (
        str,
        f"train: train/images\nval: gone/images\n{CONFIG}",
        Expected((1, 2), said="leads to no image below the root"),
    ),
    "a folder of several that is not there": (
        str,
        f"train: [train/images, gone/images]\nval: val/images\n{CONFIG}",
        Expected((3, 3), said="train: 'gone/images' leads to no image below the root"),
    ),
}


@pytest.mark.parametrize("case", YOLO)
def test_yolo(case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    change, config, expected = YOLO[case]
    root = tmp_path / "root"
    parts = {part: {s: BOXES[s] for s in stems} for part, stems in PARTS.items()}
    write_yolo(root, parts, list(NAMES.values()))
    for label in root.glob("*/labels/*.txt"):
        label.write_text("".join(f"{change(line)}\n" for line in label.read_text().splitlines()))
    if config:
        (root / "data.yaml").write_text(config)
    require(root, CustomFolder(cache=tmp_path / "cache"), expected, tmp_path, caplog)


@pytest.mark.parametrize("form", ["auto", "xyxy"])
def test_yolo_corners_are_read_where_a_setting_says_so(
    form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "root"
    parts = {part: {s: BOXES[s] for s in stems} for part, stems in PARTS.items()}
    write_yolo(root, parts, list(NAMES.values()))
    written = json.loads(CustomFolder(cache=tmp_path / "cache")(root).train.annotations.read_text())
    for label in root.glob("*/labels/*.txt") if form == "xyxy" else ():
        text = "".join(f"{yolo_corners(line)}\n" for line in label.read_text().splitlines())
        label.write_text(text)
    splits = CustomFolder(cache=tmp_path / "cache", box_format=form)(root)
    read = json.loads(splits.train.annotations.read_text())
    boxes = [[entry["bbox"] for entry in content["annotations"]] for content in (read, written)]
    assert boxes[0] == pytest.approx(np.array(boxes[1]), abs=1e-3)


def test_label_files_of_no_image_are_counted(tmp_path: Path) -> None:
    root = tmp_path / "root"
    parts = {part: {s: BOXES[s] for s in stems} for part, stems in PARTS.items()}
    write_yolo(root, parts, list(NAMES.values()))
    (root / "train/labels/b.txt").rename(root / "train/labels/other.txt")
    splits = CustomFolder(cache=tmp_path / "cache")(root)
    assert "1 label files without an image, such as train/labels/other.txt" in splits.remarks


def test_lines_of_lists_that_mean_one_image_are_named(tmp_path: Path) -> None:
    root = tmp_path / "root"
    parts = {part: {s: BOXES[s] for s in stems} for part, stems in PARTS.items()}
    write_yolo(root, parts, list(NAMES.values()))
    (root / "data.yaml").write_text(f"train: train.txt\nval: val/images\n{CONFIG}")
    lines = [f"{folder}train/images/a.png" for folder in ("/x/", "/y/", "", "/x/")]
    (root / "train.txt").write_text("\n".join(["train/images/b.png", *lines]))
    problems = CustomFolder(cache=tmp_path / "cache")(root).problems
    assert problems == (
        "train.txt: line 3 ('/y/train/images/a.png') is also in another line; it was skipped",
        "train.txt: line 4 ('train/images/a.png') is also in another line; it was skipped",
    )


def as_sizes(text: str) -> str:
    """Elements of VOC that hold x, y, width and height, from 0."""

    def change(match: re.Match[str]) -> str:
        x0, y0, x1, y1 = map(int, match.groups())
        values = zip(
            ("xmin", "ymin", "xmax", "ymax"),
            (x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1),
            strict=True,
        )
        return "".join(f"<{tag}>{value}</{tag}>" for tag, value in values)

    corners = "".join(rf"<{tag}>(\d+)</{tag}>" for tag in ("xmin", "ymin", "xmax", "ymax"))
    return re.sub(corners, change, text)


@pytest.mark.parametrize("form", ["auto", "xywh"])
def test_sizes_in_voc_elements_are_boxes(form: str, tmp_path: Path) -> None:
    found = {}
    for name in ("own", "sizes"):
        root = tmp_path / name
        write_voc(root, BOXES, {part: list(stems) for part, stems in PARTS.items()})
        for file in (root / "Annotations").iterdir() if name == "sizes" else ():
            file.write_text(as_sizes(file.read_text("utf-8")), encoding="utf-8")
        told = form if name == "sizes" else "auto"
        splits = CustomFolder(cache=tmp_path / "cache", box_format=told)(root)
        found[name] = json.loads(splits.train.annotations.read_text())["annotations"]
    assert found["sizes"] == found["own"]
    assert any("boxes were taken as corner and size" in line for line in splits.remarks)


def test_exchanged_corners_that_could_be_sizes_are_asked_about(tmp_path: Path) -> None:
    root = tmp_path / "root"
    near = {stem: [("cup", (2 + i, 2, 12 + i, 12))] for i, stem in enumerate("abcde")}
    write_voc(root, near, {part: list(stems) for part, stems in PARTS.items()})
    for file in (root / "Annotations").iterdir():
        file.write_text(exchanged(file.read_text()))
    with pytest.raises(UserError, match=r"set data\.source\.box_format=xyxy or"):
        CustomFolder(cache=tmp_path / "cache")(root)
    for form, box in (("xyxy", [2, 2, 10, 10]), ("xywh", [12, 12, 3, 3])):
        splits = CustomFolder(cache=tmp_path / "cache", box_format=form)(root)
        first = json.loads(splits.train.annotations.read_text())["annotations"][0]
        assert first["bbox"] == box


@pytest.mark.parametrize(
    ("second", "names", "said"),
    [
        ("more/a.xml", ["a", "b", "c"], "'a' could be Annotations/a.xml or more/a.xml"),
        (None, ["x/a", "y/a", "b"], "'y/a' is Annotations/a.xml, which is also in another line"),
    ],
)
def test_names_in_voc_lists_that_could_be_several(
    second: str | None, names: list[str], said: str, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    write_voc(root, BOXES, {"train": names, "val": ["d", "e"]})
    if second:
        (root / second).parent.mkdir()
        (root / second).write_bytes((root / "Annotations/a.xml").read_bytes())
    problems = CustomFolder(cache=tmp_path / "cache")(root).problems
    assert [p for p in problems if said in p and p.endswith("it was skipped")], problems


def test_two_annotation_files_of_an_image_are_named(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_voc(root / "train", {"a": BOXES["a"], "b": BOXES["b"]})
    write_voc(root / "val", {"d": BOXES["d"]})
    (root / "train/more").mkdir()
    (root / "train/more/a.xml").write_bytes((root / "train/Annotations/a.xml").read_bytes())
    problems = CustomFolder(cache=tmp_path / "cache")(root).problems
    expected = "train/JPEGImages/a.png occurs as 2 images of the split"
    assert any(expected in line for line in problems)


def exchanged(text: str) -> str:
    for axis in "xy":
        text = re.sub(
            rf"<{axis}min>(.*?)</{axis}min>(.*?)<{axis}max>(.*?)</{axis}max>",
            rf"<{axis}min>\3</{axis}min>\2<{axis}max>\1</{axis}max>",
            text,
        )
    return text


VOC: dict[str, tuple[Callable[[str], str], Mapping[str, list[str]], Expected]] = {
    "as it should be": (str, {}, FINE),
    "fractions": (lambda t: re.sub(r"<(.m\w+)>(\d+)<", r"<\1>\2.5<", t), {}, FINE),
    "corners exchanged": (
        exchanged,
        {},
        Expected((3, 3), said="6 objects have xmin above xmax, or ymin above ymax: swapped"),
    ),
    "difficult": (
        lambda t: t.replace("<difficult>0", "<difficult>1"),
        {},
        Expected(error="3 are crowd regions"),
    ),
    "difficult as a word": (
        lambda t: t.replace("<difficult>0", "<difficult>Unspecified"),
        {},
        Expected(error="has difficult 'Unspecified': it must be 0 or 1"),
    ),
    "no size": (lambda t: re.sub("<size>.*</size>", "", t), {}, FINE),
    "size 0": (lambda t: re.sub("<(width|height)>.*?<", r"<\1>0<", t), {}, FINE),
    "another file name": (lambda t: re.sub("<filename>.*?<", "<filename>1.jpg<", t), {}, FINE),
    "no file name": (lambda t: re.sub("<filename>.*</filename>", "", t), {}, FINE),
    "from 0": (
        lambda t: re.sub(r"<(.)min>(\d+)<", lambda m: f"<{m[1]}min>{int(m[2]) - 1}<", t),
        {},
        Expected((3, 3), said="pixels are counted from 0"),
    ),
    "lists with flags": (str, {"train": ["a 1", "b -1", "c 1"], "val": ["d 1", "e 1"]}, FINE),
    "lists of paths": (
        str,
        {"train": ["/home/u/JPEGImages/a.jpg", "b.png", "c"], "val": ["JPEGImages/d.png", "e.JPG"]},
        FINE,
    ),
    "an ampersand": (
        lambda t: t.replace("cup", "a & b"),
        {},
        Expected(error="'a' has no usable annotation: Annotations/a.xml: not valid XML"),
    ),
    "turned boxes": (
        lambda t: t.replace("bndbox", "robndbox"),
        {},
        Expected(error="no class: the first problem: Annotations/a.xml: object 0 ('cup') has no"),
    ),
    "no objects": (
        lambda t: re.sub("<object>.*</object>", "", t),
        {},
        Expected(error="no annotated object, so no class: annotate images"),
    ),
    "a document type": (
        lambda t: f'<!DOCTYPE annotation SYSTEM "x.dtd">{t}',
        {},
        Expected(error="a document type definition, which is not allowed"),
    ),
}


@pytest.mark.parametrize("case", VOC)
def test_voc(case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    change, lists, expected = VOC[case]
    root = tmp_path / "root"
    write_voc(root, BOXES, lists or {part: list(stems) for part, stems in PARTS.items()})
    for file in (root / "Annotations").iterdir():
        file.write_text(change(file.read_text("utf-8")), encoding="utf-8")
    require(root, CustomFolder(cache=tmp_path / "cache"), expected, tmp_path, caplog)


MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16")


@pytest.mark.parametrize("mode", [*MODES, "animated", "empty", "cut", "no image", "float"])
def test_images(mode: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever Pillow makes pixels of is taken, in a file of any suffix; the rest is named."""
    root = tmp_path / "root"
    write_coco(root, lambda content: None)
    path, size = root / "train/b.png", (WIDTH, HEIGHT)
    if mode in MODES:
        kind = {"CMYK": "JPEG"}.get(mode, "PNG")
        Image.new(mode, size).save(path, kind)
    elif mode == "animated":
        Image.new("P", size).save(
            path, "GIF", save_all=True, append_images=[Image.new("P", size, 3)]
        )
    elif mode == "float":
        Image.new("F", size, 1.0).save(path, "TIFF")
    else:
        whole = path.read_bytes()
        path.write_bytes({"empty": b"", "cut": whole[:60], "no image": b"<html>"}[mode])
    expected = FINE if mode in MODES or mode == "animated" else Expected((2, 3), said="b.png")
    source = CustomFolder(cache=tmp_path / "cache")
    if mode == "float":
        page = inspect_data("it", source(root), 0)
        assert any("floating-point pixels" in problem for problem in page.problems)
    else:
        require(root, source, expected, tmp_path, caplog)
