"""Whether all that a folder holds was used or named, and used as it was meant."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from habits import XYXY, Picture, Scene

from codetr.data.annotations import load_annotations
from codetr.data.coco_json import LISTS
from codetr.data.custom import CustomFolder
from codetr.data.sources import Splits
from codetr.errors import UserError

_IMAGE_LOST = re.compile(r"(image .*|the file was|.*is no image below the root.*) skipped$")
_BOX_LOST = re.compile(r"(annotation|object|line|shape) .*; it was skipped$")
_COUNTED = re.compile(r"(\d+) (annotated )?(images|files|label files) .*(skipped|not used)")
_JOINED = re.compile(r"(\d+) shapes .* joined")
_ORPHANS = re.compile(r"(\d+) label files without an image")
_UNSPLIT = re.compile(r"(\d+) images belong to no split")
_SAME_PX = 1.001  # YOLO's shares are rounded, VOC's corners are of pixels


def require_accounts(kind: str, found: Scene, root: Path, cache: Path) -> None:
    """Read the folder as training does; raises AssertionError where anything is lost silently."""
    if kind == "coco":
        require_read_as_it_is(root)
    splits = CustomFolder(cache=cache, format=kind)(root)
    train = load_annotations(splits.train.annotations)
    load_annotations(splits.val.annotations, train.classes)
    parts = [json.loads(s.annotations.read_text()) for s in (splits.train, splits.val)]
    if splits.train.annotations == splits.val.annotations:
        parts = parts[:1]
    if kind != "coco":  # whose images are named by their ids
        require_images(found, splits, parts)
    require_boxes(kind, found, root, splits, parts)
    if not found.vague:
        require_meant(found, parts)


def plain(text: str) -> str:
    """In whatever spelling."""
    return unicodedata.normalize("NFC", unquote(text)).casefold()


def stem_of(file: str) -> str:
    """The name of a file without its suffix, in whatever spelling."""
    return plain(Path(file).stem)


def require_images(found: Scene, splits: Splits, parts: Sequence[dict[str, Any]]) -> None:
    """Every picture is used, named, or one of a number that is said."""
    used = {stem_of(image["file_name"]) for part in parts for image in part["images"]}
    unused = [p.stem for p in found.pictures if plain(p.stem) not in used]
    told = plain("\n".join(splits.problems))
    unnamed = [stem for stem in unused if plain(stem) not in told]
    counted = sum(int(m[1]) for r in splits.remarks for m in _COUNTED.finditer(r))
    counted += sum(int(n) for r in splits.remarks for n in _of_other_splits(r))
    assert len(unnamed) <= counted, (unnamed, splits.remarks, splits.problems)


def _of_other_splits(remark: str) -> Iterator[str]:
    """Of ``images: train 5, val 2, test 2; training on train, validating on val``."""
    match = re.fullmatch(r"images: (.*); training on (\S+), validating on (\S+)", remark)
    for entry in match[1].split(", ") if match else ():
        name, count = entry.split()
        if match and name not in match.groups()[1:]:
            yield count


def require_boxes(
    kind: str, found: Scene, root: Path, splits: Splits, parts: Sequence[dict[str, Any]]
) -> None:
    """As many as were written in the images that are used: those in use and those named."""
    lost = sum(bool(_BOX_LOST.match(p.partition(": ")[2])) for p in splits.problems)
    used = sum(len(part["annotations"]) for part in parts)
    if kind == "coco":
        contents = [json.loads(f.read_bytes()) for f in root.rglob("*.json")]
        there = {name: sum(len(content[name]) for content in contents) for name in LISTS}
        images = sum(len(part["images"]) for part in parts)
        others = sum(int(n) for r in splits.remarks for n in _of_other_splits(r))
        others += sum(int(m[1]) for r in splits.remarks for m in _UNSPLIT.finditer(r))
        named = sum(bool(_IMAGE_LOST.match(p.partition(": ")[2])) for p in splits.problems)
        assert there["images"] <= images + named + others, (there, images, splits.problems)
        if not others:
            assert there["annotations"] == used + lost, (there, used, splits.problems)
        return
    boxes = {plain(p.stem): 0 if p.orphaned else len(p.boxes) for p in found.pictures}
    stems = [stem_of(image["file_name"]) for part in parts for image in part["images"]]
    lost = sum(
        bool(_BOX_LOST.match(text)) and stem_of(file) in stems
        for file, _, text in (p.partition(": ") for p in splits.problems)
    )
    written = sum(boxes[s] for s in stems)
    named = used + lost + sum(int(m[1]) for r in splits.remarks for m in _JOINED.finditer(r))
    told = (written, used, lost, splits.remarks, splits.problems)
    if {"a second file", "groups"} & set(found.habits):  # said of splits that are not used, too
        assert used <= written <= named, told
    else:
        assert written == named, told
    orphans = sum(p.orphaned for p in found.pictures)
    told_orphans = sum(int(m[1]) for r in splits.remarks for m in _ORPHANS.finditer(r))
    assert orphans <= told_orphans, (orphans, splits.remarks)


def require_meant(found: Scene, parts: Sequence[dict[str, Any]]) -> None:
    """Boxes in use are where they were drawn, and of the class."""
    pictures = {plain(p.stem): p for p in found.pictures}
    for part in parts:
        names = {entry["id"]: entry["name"] for entry in part["categories"]}
        images = {entry["id"]: entry for entry in part["images"]}
        for entry in part["annotations"]:
            picture = pictures[stem_of(images[entry["image_id"]]["file_name"])]
            x, y, width, height = entry["bbox"]
            box = (x, y, x + width, y + height)
            assert _drawn(picture, names[entry["category_id"]], box, found), (entry, picture)


def _drawn(picture: Picture, name: str, box: XYXY, found: Scene) -> bool:
    renamed = "numbers as names" in found.habits
    return any(
        (renamed or label == name)
        and all(abs(a - b) <= _SAME_PX for a, b in zip(box, drawn, strict=True))
        for label, drawn in picture.boxes
    )


def require_read_as_it_is(root: Path) -> None:
    """COCO files without conversion: used, or named with what is left out."""
    for path in root.rglob("*.json"):
        flaws: list[str] = []
        try:
            loaded = load_annotations(path, flaws=flaws)
        except UserError:
            continue
        content = json.loads(path.read_bytes())
        images = sum(flaw.startswith("image ") for flaw in flaws)
        assert len(content["images"]) == len(loaded) + images
        assert len(content["annotations"]) == len(loaded.boxes) + len(flaws) - images
