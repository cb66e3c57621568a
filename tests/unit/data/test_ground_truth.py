"""Which annotations supervise, by hand-made files with one annotation of every kind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from codetr.data.annotations import load_annotations
from codetr.data.augment import Chain
from codetr.data.datamodule import CocoDataModule
from codetr.data.ground_truth import DetrFilter, GroundTruthFilter, MmdetFilter
from codetr.data.sources import CocoFolder
from codetr.errors import UserError

MakeRoot = Callable[..., Path]
FOLDER = CocoFolder(
    train_annotations="train.json",
    train_images="train",
    val_annotations="val.json",
    val_images="val",
)
CASES: dict[str, tuple[dict[str, Any], bool, bool]] = {
    # what the annotation says; whether mmdet trains on it; whether DETR does
    "plain": ({"bbox": [2, 3, 10, 12], "area": 100}, True, True),
    "one pixel wide": ({"bbox": [31.7, 3, 1, 5], "area": 5}, True, True),  # a float32 sum loses it
    "narrower": ({"bbox": [2, 3, 0.99, 12], "area": 11}, False, True),
    "lower": ({"bbox": [2, 3, 12, 0.5], "area": 6}, False, True),
    "a pixel before it is clipped": ({"bbox": [-9, 3, 9.5, 12], "area": 100}, True, True),
    "no area": ({"bbox": [2, 3, 10, 12], "area": 0}, False, True),
    "negative area": ({"bbox": [2, 3, 10, 12], "area": -1.0}, False, True),
    "area not given": ({"bbox": [2, 3, 10, 12]}, True, True),
    "area null": ({"bbox": [2, 3, 10, 12], "area": None}, True, True),
    "to be ignored": ({"bbox": [2, 3, 10, 12], "area": 9, "ignore": 1}, False, True),
    "not to be ignored": ({"bbox": [2, 3, 10, 12], "area": 9, "ignore": 0}, True, True),
    "outside": ({"bbox": [60, 3, 10, 12], "area": 9}, False, False),
    "at the border": ({"bbox": [40, 3, 10, 12], "area": 9}, False, False),
    "without a width": ({"bbox": [2, 3, 0, 12], "area": 9}, False, False),
    "crowd": ({"bbox": [2, 3, 10, 12], "area": 9, "iscrowd": 1}, False, False),
}


def content_of(*cases: str, size: tuple[int, int] = (40, 32)) -> dict[str, Any]:
    """One image of ``size`` (width, height) with an annotation for each case."""
    return {
        "images": [{"id": 1, "file_name": "0.png", "width": size[0], "height": size[1]}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, **CASES[case][0]}
            for i, case in enumerate(cases)
        ],
        "categories": [{"id": 1, "name": "ant"}],
    }


def module(root: Path, kept: GroundTruthFilter, **options: Any) -> CocoDataModule:
    made = CocoDataModule(
        root, FOLDER, Chain(), Chain(), num_workers=0, ground_truth=kept, **options
    )
    made.setup("fit")
    return made


@pytest.mark.parametrize("case", CASES)
def test_boxes_that_supervise(case: str, make_root: MakeRoot) -> None:
    _, by_mmdet, by_detr = CASES[case]
    content = content_of("plain", case)
    root = make_root(content, content)
    for kept, expected in ((MmdetFilter(), by_mmdet), (DetrFilter(), by_detr)):
        made = module(root, kept)
        assert len(made.train_dataset[0].targets) == 1 + expected
        assert len(made.eval_dataset[0].targets) == 1 + by_detr, "evaluation counts what it did"


def test_small_images_are_not_trained_on_but_evaluated(make_root: MakeRoot) -> None:
    content = content_of("plain", size=(40, 32))
    small = content_of("plain", size=(31, 40))
    content["images"].append({**small["images"][0], "id": 2, "file_name": "1.png"})
    content["images"].append({**content["images"][0], "id": 3, "file_name": "2.png"})  # no box
    root = make_root(content, content)
    for kept, expected in ((MmdetFilter(), [1, 3]), (DetrFilter(), [1, 2, 3])):
        made = module(root, kept, batch_size=1, eval_split="train")
        trained = sorted(i.image_id for b in made.train_dataloader() for i in b.infos)
        assert trained == expected
        assert [s.image_id for s in map(made.train_dataset.__getitem__, range(len(expected)))] == (
            expected
        )
        evaluated = sorted(i.image_id for b in made.val_dataloader() for i in b.infos)
        assert evaluated == [1, 2, 3]


def test_without_an_image_left_it_says_so(make_root: MakeRoot) -> None:
    content = content_of("plain", size=(40, 20))
    with pytest.raises(UserError, match=r"data\.ground_truth=MmdetFilter keeps no image"):
        module(make_root(content, content), MmdetFilter())


def test_what_is_left_out_is_said(make_root: MakeRoot, caplog: pytest.LogCaptureFixture) -> None:
    content = content_of("plain", "narrower", "outside")
    with caplog.at_level("INFO", "codetr.data.datamodule"):
        module(make_root(content, content), MmdetFilter())
    assert "data.ground_truth drops 1 of 2 boxes" in caplog.text


def test_an_area_that_is_no_number_is_named(tmp_path: Path) -> None:
    content = content_of("plain")
    content["annotations"][0]["area"] = "large"
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"annotation 0 in .*a\.json has area 'large'"):
        load_annotations(path)
