"""Classes that a setting keeps, merges and renames, in all readings of all formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from custom_folders import coco_content, write_images, write_voc, write_yolo

from codetr.analysis.inspect_data import inspect_data
from codetr.data.augment import Chain
from codetr.data.class_choice import ClassChoice, with_classes
from codetr.data.custom import CustomFolder
from codetr.data.datamodule import CocoDataModule
from codetr.data.derived import read_content
from codetr.data.sources import CocoFolder, Source
from codetr.errors import UserError
from codetr.evaluation.ground_truth import read_ground_truth

NAMES = ["bus", "car", "van", "no"]
BOXES = [(name, (1.0 + i, 2.0, 20.0 + i, 22.0)) for i, name in enumerate(NAMES)]
SPLITS = {"train": {"a": BOXES, "b": BOXES[:2]}, "val": {"c": BOXES}}
KINDS = ("coco", "custom coco", "voc", "yolo")


def write(kind: str, root: Path) -> Source:
    root.mkdir()
    if kind == "voc":
        lists = {split: list(images) for split, images in SPLITS.items()}
        write_voc(root, {k: v for images in SPLITS.values() for k, v in images.items()}, lists)
    elif kind == "yolo":
        write_yolo(root, SPLITS, NAMES)
    else:
        for split, images in SPLITS.items():
            files = {f"{name}.png": boxes for name, boxes in images.items()}
            write_images(root / split, list(files))
            content = coco_content(files, dict(enumerate(NAMES, 5)))
            (root / split / "_annotations.coco.json").write_text(json.dumps(content))
    if kind != "coco":
        return CustomFolder(cache=root.parent / "cache")
    given = {f"{s}_annotations": f"{s}/_annotations.coco.json" for s in SPLITS}
    return CocoFolder(**given, train_images="train", val_images="val")


def opened(kind: str, tmp_path: Path, classes: dict[str, Any]) -> CocoDataModule:
    root = tmp_path / "root"
    module = CocoDataModule(
        root,
        write(kind, root),
        Chain(),
        Chain(),
        num_workers=0,
        classes=classes,
        derived=tmp_path / "derived",
    )
    module.setup("fit")
    return module


@pytest.mark.parametrize("kind", KINDS)
def test_classes_are_chosen_everywhere_alike(kind: str, tmp_path: Path) -> None:
    classes = {"keep": ["road", "no"], "merge": {"road": ["car", "van"]}}
    module = opened(kind, tmp_path, classes)
    assert set(module.classes.names) == {"road", "no"}
    road = module.classes.names.index("road")
    assert [len(module.train_dataset[i].targets) for i in range(2)] == [3, 1]
    assert torch.bincount(module.train_dataset[0].targets.labels)[road] == 2
    (truth,) = read_ground_truth(module.val_annotations, module.classes).values()
    assert torch.bincount(truth.labels)[road] == 2
    choice = ClassChoice(**classes)
    splits = with_classes(module.source(module.root), choice, tmp_path / "derived")
    page = inspect_data("chosen", splits)
    assert {row[0]: row[1:] for row in page.classes[1:]} == {"road": ("3", "2"), "no": ("1", "1")}
    assert any("2 classes by data.classes, 2 objects of others dropped" in r for r in page.remarks)
    for stage in ("test",):
        alone = CocoDataModule(
            *(module.root, module.source, Chain(), Chain()),
            num_workers=0,
            classes=classes,
            derived=tmp_path / "derived",
        )
        alone.setup(stage)
        assert alone.classes == module.classes


def test_choosing_classes_reads_each_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def counted(path: Path) -> Any:
        read.append(path)
        return read_content(path)

    monkeypatch.setattr("codetr.data.class_choice.read_content", counted)
    module = opened("coco", tmp_path, {"keep": ["car"]})
    module.prepare_data()
    module.setup("validate")
    assert [path.parent.name for path in read] == ["train", "val"]


def test_renamed_classes_keep_their_ids(tmp_path: Path) -> None:
    module = opened("coco", tmp_path, {"rename": {"no": "nothing"}})
    assert dict(zip(module.classes.category_ids, module.classes.names, strict=True)) == {
        **{5: "bus", 6: "car", 7: "van", 8: "nothing"}
    }


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ({"keep": ["bsu"]}, r"data\.classes\.keep.*did you mean 'bus'"),
        ({"merge": {"road": ["cra"]}}, r"data\.classes\.merge.*'car'"),
        ({"rename": {"vna": "x"}}, r"data\.classes\.rename.*'van'"),
        ({"rename": {"van": "car"}}, r"data\.classes\.merge=\{car"),
        ({"merge": {"road": "car"}}, "a list"),
        ({"keep": []}, "at least one"),
    ],
)
def test_mistakes_are_named(choice: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        ClassChoice(**choice).of(NAMES)


def test_names_that_a_command_line_reads_as_values() -> None:
    names = ["true", "1.5", "null", "7"]
    assert ClassChoice(keep=[True, 1.5, None, 7]).of(names) == {name: name for name in names}


def test_an_unused_root_stays_no_class(shared: Path, tmp_path: Path) -> None:
    root = shared / "data/reports/root_named_like_class"
    source = CustomFolder(cache=tmp_path / "cache")
    module = CocoDataModule(
        *(root, source, Chain(), Chain()),
        num_workers=0,
        classes={"rename": {"raccoon": "bear"}},
        derived=tmp_path / "derived",
    )
    module.setup("fit")
    assert module.classes.names == ("bear",)
    given = {f"{s}_annotations": f"{d}/_annotations.coco.json" for s, d in PLACES.items()}
    source = CocoFolder(**given, train_images="train", val_images="valid")
    module = CocoDataModule(
        *(root, source, Chain(), Chain()),
        num_workers=0,
        classes={"rename": {"raccoon": "bear"}},
        derived=tmp_path / "derived",
    )
    module.setup("fit")
    assert module.classes.names == ("bear",)


PLACES = {"train": "train", "val": "valid"}
