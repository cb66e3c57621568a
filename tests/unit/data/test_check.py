from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from codetr.data.annotations import CocoAnnotations, load_annotations
from codetr.data.check import DataReport, check_dataset, check_split
from codetr.errors import UserError

MakeRoot = Callable[..., Path]


def _load(root: Path, name: str) -> tuple[CocoAnnotations, Path]:
    return load_annotations(root / f"{name}.json"), root / name


def test_counts_and_examples(content: Any, make_root: MakeRoot) -> None:
    boxes = content["annotations"]
    boxes[0]["bbox"] = [30, 3, 20, 5]  # beyond the right border
    boxes[1]["bbox"] = [3, 3, 0, 5]
    boxes[2]["iscrowd"] = 1
    report = check_split(*_load(make_root(content), "train"))
    assert (report.images, report.images_without_boxes) == (3, 2)
    assert (report.boxes, report.crowd) == (1, 1)
    assert report.degenerate.count == 1
    assert report.degenerate.examples == ("1.png: annotation 101, xyxy (3.0, 3.0, 3.0, 8.0)",)
    assert report.outside.count == 1
    assert report.outside.examples[0].startswith("0.png: annotation 100")
    assert report.classes_without_boxes == ("ant", "bat")
    console = Console(file=StringIO(), width=120)
    console.print(DataReport(splits=(replace(report, classes_without_boxes=("[red]ant",)),)))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "annotation 101" in shown
    assert "[red]ant" in shown, "a name is no markup"


def test_good_data_has_no_findings(make_root: MakeRoot) -> None:
    root = make_root()
    report = check_dataset(_load(root, "train"), _load(root, "val"))
    assert [s.images for s in report.splits] == [6, 5]
    assert all(s.degenerate.count == s.outside.count == 0 for s in report.splits)


def test_missing_files(make_root: MakeRoot) -> None:
    root = make_root()
    (root / "train" / "2.png").unlink()
    (root / "train" / "4.png").unlink()
    with pytest.raises(UserError, match=r"2 of 6 image files are missing.*train/2\.png"):
        check_split(*_load(root, "train"))
    annotations, _ = _load(root, "train")
    with pytest.raises(UserError, match=r"image folder .*absent"):
        check_split(annotations, root / "absent")


def test_no_boxes_at_all(content: Any, make_root: MakeRoot) -> None:
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    with pytest.raises(UserError, match=r"train\.json has no usable box"):
        check_split(*_load(make_root(content), "train"))


def test_class_lists_must_agree(content: Any, make_root: MakeRoot) -> None:
    content["categories"][2]["name"] = "bird"
    root = make_root(6, content)
    with pytest.raises(UserError, match=r"category 3 is 'bat' in .*train.* and 'bird' in .*val"):
        check_dataset(_load(root, "train"), _load(root, "val"))
