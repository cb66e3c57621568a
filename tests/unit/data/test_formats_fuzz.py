"""Thousands of malformed annotation files: each gives a clear error, or usable data and a report
of what was left out; never another exception, and never a long wait.
"""

from __future__ import annotations

import json
import random
import time
from functools import cache
from pathlib import Path
from typing import Any

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
from variants import (
    alias_variant,
    bytes_variant,
    deep,
    entity_variant,
    json_variant,
    token_variant,
)

from codetr.classes import ClassList
from codetr.data import convert
from codetr.data.annotations import load_annotations
from codetr.data.convert import CocoWriter
from codetr.data.custom import FORMATS, CustomFolder, recognise
from codetr.data.formats.content import UNSPLIT
from codetr.data.formats.tree import Tree, list_files
from codetr.data.images import read_geometry
from codetr.data.split_choice import divide
from codetr.errors import UserError
from codetr.evaluation.ground_truth import read_ground_truth

VARIANTS = 800  # of every file; of a configuration a third, since YAML is slow
SECONDS = 5.0  # of processor time, for any one of them
NAMES = ["cup", "öl 油"]

CASES = {
    "voc annotation": (
        "voc",
        "Annotations/a.xml",
        (bytes_variant, token_variant, entity_variant, deep("<object>", "</object>")),
    ),
    "voc list": ("voc", "ImageSets/Main/train.txt", (bytes_variant, token_variant)),
    "yolo labels": ("yolo", "train/labels/a.txt", (bytes_variant, token_variant)),
    "yolo configuration": (
        "yolo",
        "data.yaml",
        (bytes_variant, token_variant, alias_variant, deep("["), deep("{a: ")),
    ),
    "labelme file": ("labelme", "a.json", (bytes_variant, json_variant, deep("["), deep('{"a":'))),
    "coco file": ("coco", "labels.json", (bytes_variant, json_variant, deep("["), deep('{"a":'))),
}


def write(kind: str, root: Path) -> None:
    """Five images with boxes that nothing is wrong with."""
    if kind == "labelme":
        for name, boxes in CELLS.items():
            write_images(root, [f"{name}.png"])
            shapes = [
                {"label": n, "points": [[b[0], b[1]], [b[2], b[3]]], "shape_type": "rectangle"}
                for n, b in boxes
            ]
            content = {"shapes": shapes, "imagePath": f"{name}.png", "imageWidth": WIDTH}
            (root / f"{name}.json").write_text(json.dumps({**content, "imageHeight": HEIGHT}))
    elif kind == "voc":
        write_voc(root, CELLS, {"train": list("abc"), "val": list("de")})
    else:  # yolo, or coco
        parts = {"train": {k: CELLS[k] for k in "abc"}, "valid": {k: CELLS[k] for k in "de"}}
        write_yolo(root, parts, NAMES)
    if kind == "coco":
        for path in [*root.glob("*/labels/*.txt"), root / "data.yaml"]:
            path.unlink()
        images = {f"{name}.png": boxes for name, boxes in CELLS.items()}
        content = coco_content(images, {3: NAMES[0], 9: NAMES[1]})
        content["annotations"][0]["segmentation"] = [[0, 0, 5, 0, 5, 5]]
        (root / "labels.json").write_text(json.dumps(content))


def require_usable(content: dict[str, Any]) -> None:
    """A COCO file with which nothing is wrong."""
    images = {image["id"] for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    assert len(images) == len(content["images"])
    assert len(categories) == len(content["categories"]) > 0
    for annotation in content["annotations"]:
        assert annotation["image_id"] in images
        assert annotation["category_id"] in categories
        x, y, width, height = annotation["bbox"]
        assert 0 <= x < x + width <= WIDTH + 1e-3
        assert 0 <= y < y + height <= HEIGHT + 1e-3


def read_variant(kind: str, tree: Tree) -> str:
    """Read a folder to the end, in memory; what became of it."""
    try:
        found = FORMATS[kind].read(tree)
        problems = list(found.problems)
        splits = dict(found.splits)
        if UNSPLIT in splits and len(splits[UNSPLIT].images) > 1:
            splits |= divide(splits.pop(UNSPLIT), 0.2, 0)
        for split in splits.values() if found.categories else ():
            writer = CocoWriter(root=tree.root, categories=found.categories, problems=problems)
            require_usable(json.loads(json.dumps(writer.contents([split.images])[0])))
    except UserError as error:
        require_clear(str(error))
        return "error"
    for problem in problems:
        require_clear(str(problem))
        assert problem.file in tree.files
    return "reported" if problems else "fine"


def require_clear(message: str) -> None:
    """One line, of a length that can be read."""
    assert len(message.splitlines()) == 1, message
    assert len(message) < 700, message


@pytest.mark.parametrize("case", CASES)
def test_malformed_files_are_errors_or_reported(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, file, changes = CASES[case]
    write(kind, tmp_path)
    tree = list_files(tmp_path)
    assert read_variant(kind, tree) == "fine"
    monkeypatch.setattr(convert, "read_geometry", cache(read_geometry))  # the images stay the same
    path = tmp_path / file
    original = path.read_bytes()
    rng = random.Random(case)
    outcomes = dict.fromkeys(("error", "reported", "fine"), 0)
    count = VARIANTS // 3 if file == "data.yaml" else VARIANTS
    for _ in range(count):
        variant = rng.choice(changes)(rng, original)
        path.write_bytes(variant)
        start = time.process_time()
        try:
            outcome = read_variant(kind, tree)
        except Exception as error:
            raise AssertionError(f"{type(error).__name__} for {variant[:2000]!r}") from error
        assert time.process_time() - start < SECONDS, variant[:2000]
        outcomes[outcome] += 1
    assert outcomes["error"] + outcomes["reported"] > count / 4, outcomes


@pytest.mark.parametrize("case", CASES)
def test_malformed_files_through_the_whole_source(case: str, tmp_path: Path) -> None:
    kind, file, changes = CASES[case]
    root = tmp_path / "root"
    root.mkdir()
    write(kind, root)
    original = (root / file).read_bytes()
    rng = random.Random(f"{case} whole")
    for _ in range(25):
        (root / file).write_bytes(rng.choice(changes)(rng, original))
        try:
            splits = CustomFolder(cache=tmp_path / "cache", format=kind)(root)
            train = load_annotations(splits.train.annotations)
            load_annotations(splits.val.annotations, train.classes)
        except UserError as error:
            require_clear(str(error))


def test_malformed_files_without_conversion(tmp_path: Path) -> None:
    """What ``data=coco`` reads as it is, and evaluation."""
    write("coco", tmp_path)
    path = tmp_path / "labels.json"
    original = path.read_bytes()
    rng = random.Random("coco as it is")
    for _ in range(VARIANTS):
        variant = rng.choice((bytes_variant, json_variant, deep("[")))(rng, original)
        path.write_bytes(variant)
        for reader in (read_for_training, read_for_evaluation, read_to_look_at):
            try:
                reader(path)
            except UserError as error:
                require_clear(str(error))
            except Exception as error:
                raise AssertionError(f"{type(error).__name__} for {variant[:2000]!r}") from error


def read_for_training(path: Path) -> None:
    loaded = load_annotations(path)
    assert loaded.targets(0).boxes.isfinite().all() if len(loaded) else True


def read_to_look_at(path: Path) -> None:
    flaws: list[str] = []
    load_annotations(path, flaws=flaws)
    for flaw in flaws:
        require_clear(flaw)


def read_for_evaluation(path: Path) -> None:
    classes = ClassList(names=tuple(NAMES), category_ids=(3, 9))
    for truth in read_ground_truth(path, classes).values():
        assert set(truth.crowd.tolist()) <= {0, 1}


WITHOUT = {
    "voc annotation": "reported",  # its image is in a list
    "voc list": "fine",  # there is no training split then, which ``CustomFolder`` says
    "yolo labels": "fine",  # an image without boxes
    "yolo configuration": "error",
    "labelme file": "fine",  # its image has no annotations then
    "coco file": "error",
}
"""What becomes of the folders where the file is not there."""


@pytest.mark.parametrize("case", CASES)
def test_folders_and_links_instead_of_files_are_as_nothing(case: str, tmp_path: Path) -> None:
    kind, file, _ = CASES[case]
    write(kind, tmp_path)
    path = tmp_path / file
    path.unlink()
    outcomes = [read_variant(kind, list_files(tmp_path))]
    path.mkdir()
    outcomes.append(read_variant(kind, list_files(tmp_path)))
    path.rmdir()
    for target in (tmp_path, tmp_path / "nowhere"):
        path.symlink_to(target)
        outcomes.append(read_variant(kind, list_files(tmp_path)))
        path.unlink()
    assert outcomes == [WITHOUT[case]] * 4


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_still_recognised_when_its_files_are_broken(
    kind: str, tmp_path: Path
) -> None:
    write(kind, tmp_path)
    assert recognise(list_files(tmp_path)) == kind


def entries(value: Any, key: str) -> int:
    found = value.get(key) if isinstance(value, dict) else None
    return len(found) if isinstance(found, list) else 0


@pytest.mark.parametrize("case", ["coco file", "labelme file", "yolo labels", "voc annotation"])
def test_what_goes_in_is_used_or_named(case: str, tmp_path: Path) -> None:
    """Boxes and images that a file holds are those that are used and those that are reported."""
    kind, file, _ = CASES[case]
    write(kind, tmp_path)
    tree = list_files(tmp_path)
    path = tmp_path / file
    original = path.read_bytes()
    rng = random.Random(f"{case} law")
    change = json_variant if file.endswith(".json") else token_variant
    counted = 0
    for _ in range(VARIANTS):
        variant = change(rng, original)
        path.write_bytes(variant)
        try:
            found = FORMATS[kind].read(tree)
        except UserError:
            continue  # all of it is named
        all_images = [image for split in found.splits.values() for image in split.images]
        lost = [problem for split in found.splits.values() for problem in split.lost]
        own = [image for image in all_images if image.source == file]
        used = sum(len(image.boxes) + image.flawed for image in own)
        flawed = sum(split.flawed for split in found.splits.values())
        if kind == "coco":
            tree_of_values = json.loads(variant)
            assert entries(tree_of_values, "images") == len(all_images) + len(lost), variant
            assert entries(tree_of_values, "annotations") == used + flawed
        elif kind == "labelme" and not entries(json.loads(variant), "shapes"):
            continue
        elif any(problem.file == file for problem in lost) or not own:
            assert any(problem.file == file for problem in found.problems), variant
            continue
        elif kind == "labelme":
            assert entries(json.loads(variant), "shapes") == used, variant
        elif kind == "yolo":
            assert sum(bool(line.strip()) for line in variant.decode().splitlines()) == used
        else:
            assert variant.decode().count("<object>") == used or b"<object/>" in variant, variant
        counted += 1
    assert counted > VARIANTS / 8
