"""What cannot be used is counted, and too much of it is an error; boxes count as images do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from custom_folders import CELLS, coco_content, voc_xml, write_images, write_voc, write_yolo

from codetr.data.augment import Chain
from codetr.data.custom import CustomFolder
from codetr.data.datamodule import CocoDataModule
from codetr.data.outlines import area_of, box_of
from codetr.data.sources import CocoFolder, Source
from codetr.errors import UserError

BOX = [("cup", (3.0, 4.0, 20.0, 22.0))]
TEN = [f"{i}" for i in range(10)]


def setup(root: Path, source: Source) -> CocoDataModule:
    module = CocoDataModule(root, source, Chain(), Chain(), num_workers=0)
    module.setup("fit")
    return module


def in_place(**options: Any) -> CocoFolder:
    """One file and one folder, as ``data=coco`` reads them."""
    given = {"train_annotations": "labels.json", "val_annotations": "labels.json"}
    return CocoFolder(**given, train_images="photos", val_images="photos", **options)


def write_coco(root: Path, content: dict[str, Any]) -> Path:
    write_images(root / "photos", [image["file_name"] for image in content["images"]])
    (root / "labels.json").write_text(json.dumps(content))
    return root


def of_ten(kind: str, root: Path, flawed: int) -> None:
    """Ten training images with a box each, the first ``flawed`` of which are of no use."""
    splits = {"train": dict.fromkeys(TEN, BOX), "val": {"v": BOX, "w": BOX}}
    if kind == "coco":
        for name, images in splits.items():
            content = coco_content({f"{n}.png": b for n, b in images.items()}, {1: "cup"})
            for annotation in content["annotations"] if name == "train" else ():
                if annotation["image_id"] < 7 * flawed:
                    annotation["bbox"] = [500, 500, 10, 10]
            write_images(root / name, [f"{n}.png" for n in images])
            (root / name / "_annotations.coco.json").write_text(json.dumps(content))
    elif kind == "voc":
        images = dict.fromkeys([*TEN, "v", "w"], BOX)
        write_voc(root, images, {"train": TEN, "val": ["v", "w"]})
        for name in TEN[:flawed]:
            text = voc_xml(BOX).replace("<xmax>20</xmax>", "<xmax>broad</xmax>")
            (root / f"Annotations/{name}.xml").write_text(text)
    else:
        write_yolo(root, splits, ["cup"])
        for name in TEN[:flawed]:
            (root / f"train/labels/{name}.txt").write_text("5 0.5 0.5 0.1 0.1\n")


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
def test_losing_most_boxes_is_an_error_with_a_setting(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    of_ten(kind, root, 9)
    with pytest.raises(UserError, match=r"9 of 10 boxes .*data\.source\.max_lost=0\.9") as error:
        CustomFolder(cache=tmp_path / "cache")(root)
    assert "annotate" not in str(error.value)
    accepted = setup(root, CustomFolder(cache=tmp_path / "cache", max_lost=0.9))
    assert sum(len(accepted.train_dataset[i].targets) for i in range(10)) == 1


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
def test_losing_a_few_boxes_is_none(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    of_ten(kind, root, 2)
    splits = CustomFolder(cache=tmp_path / "cache")(root)
    assert len(splits.problems) == 2
    assert len(json.loads(splits.train.annotations.read_text())["annotations"]) == 8
    with pytest.raises(UserError, match="2 of 10 boxes"):
        CustomFolder(cache=tmp_path / "cache", max_lost=0.1)(root)


def test_data_as_it_is_has_the_same_limit(tmp_path: Path) -> None:
    content = coco_content(dict.fromkeys([f"{n}.png" for n in TEN], BOX), {1: "cup"})
    for annotation in content["annotations"][:9]:
        annotation["bbox"] = [500, 500, 10, 10]
    root = write_coco(tmp_path, content)
    with pytest.raises(UserError, match=r"9 of 10 boxes .*data\.source\.max_lost=0\.9"):
        setup(root, in_place())
    assert len(setup(root, in_place(max_lost=0.9)).train_dataset) == 10


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_limit_is_a_share(share: float, tmp_path: Path) -> None:
    for make in (in_place, CustomFolder):
        with pytest.raises(UserError, match=r"data\.source\.max_lost"):
            make(max_lost=share)


@pytest.mark.parametrize(("crowds", "said"), [(0, "annotate"), (10, "10 are crowd regions")])
def test_only_where_nothing_is_annotated_is_one_told_to_annotate(
    crowds: int, said: str, tmp_path: Path
) -> None:
    content = coco_content(dict.fromkeys([f"{n}.png" for n in TEN], BOX), {1: "cup"})
    content["annotations"] = content["annotations"][:crowds]
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    with pytest.raises(UserError, match=said) as error:
        setup(write_coco(tmp_path, content), in_place())
    assert ("annotate" in str(error.value)) == (crowds == 0)


POLYGON = [[3, 4, 20, 4, 20, 22, 3, 22]]
RUNS = {"size": [30, 40], "counts": [94, *[18, 12] * 16, 18, 1200 - 94 - 17 * 18 - 16 * 12]}
OUTLINES = {
    "polygon": POLYGON,
    "two polygons": [[3, 4, 10, 4, 3, 22], [10, 20, 20, 22, 12, 15]],
    "texts": [[str(v) for v in POLYGON[0]]],
    "without its list": POLYGON[0],
    "run lengths": RUNS,
}


@pytest.mark.parametrize("missing", ["absent", "null", "empty"])
@pytest.mark.parametrize("outline", OUTLINES)
def test_outlines_give_boxes_in_all_readings(outline: str, missing: str, tmp_path: Path) -> None:
    content = coco_content(dict.fromkeys(["a.png", "b.png"], BOX), {1: "cup"})
    for annotation in content["annotations"]:
        annotation |= {
            "segmentation": OUTLINES[outline],
            "bbox": [] if missing == "empty" else None,
        }
        del annotation["area"]
        if missing == "absent":
            del annotation["bbox"]
    root = write_coco(tmp_path / "root", content)
    for source in (in_place(), CustomFolder(cache=tmp_path / "cache")):
        module = setup(root, source)
        assert module.train_dataset[0].targets.boxes.tolist() == [[3, 4, 20, 22]]
        assert module.eval_dataset[0].targets.boxes.tolist() == [[3, 4, 20, 22]]


def test_outlines_as_pycocotools_measures_them() -> None:
    from pycocotools import mask

    drawn = mask.merge(mask.frPyObjects(OUTLINES["two polygons"], 30, 40))
    compressed = {"size": [30, 40], "counts": drawn["counts"].decode()}
    assert box_of(compressed) == mask.toBbox(drawn).tolist()
    assert area_of(compressed) == mask.area(drawn)
    assert box_of(RUNS) == mask.toBbox(mask.frPyObjects(RUNS, 30, 40)).tolist()
    assert area_of(RUNS) == 17 * 18 == area_of(POLYGON)


@pytest.mark.parametrize(
    "value",
    [
        *(None, [], {}, "x", 5, [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, "x"]], [[1, 2], {}], [[]]),
        *({"size": [30, 40], "counts": counts} for counts in ([5], [1200], "", "\x00", "P" * 99)),
        *({"size": size, "counts": [0, 4]} for size in ([0, 4], [2, 2, 2], "22", [2.5, 2])),
        {"size": [2, 2], "counts": [-1, 5]},
        {"size": [2, 2], "counts": [10**30, 4]},
    ],
)
def test_what_is_no_outline_gives_no_box(value: Any) -> None:
    assert box_of(value) is None
    assert area_of(value) is None


@pytest.mark.parametrize("data", ["coco", "custom"])
def test_reported_polygons_give_boxes(data: str, shared: Path, tmp_path: Path) -> None:
    root = shared / "data/reports/polygons_only"
    given = {f"{s}_annotations": f"annotations/instances_{s}.json" for s in ("train", "val")}
    source = CocoFolder(**given, train_images="train", val_images="val")
    module = setup(root, source if data == "coco" else CustomFolder(cache=tmp_path))
    assert [module.train_dataset[i].targets.boxes.tolist() for i in range(3)] == [
        [[10, 10, 40, 40]]
    ] * 3


@pytest.mark.parametrize("data", ["coco", "custom"])
def test_panoptic_files_are_called_what_they_are(data: str, shared: Path, tmp_path: Path) -> None:
    root = shared / "data/reports/panoptic_by_mistake"
    given = {f"{s}_annotations": f"annotations/panoptic_{s}.json" for s in ("train", "val")}
    source = CocoFolder(**given, train_images="train", val_images="val")
    with pytest.raises(UserError, match=r"panoptic segments .*instances") as error:
        setup(root, source if data == "coco" else CustomFolder(cache=tmp_path))
    assert "annotate" not in str(error.value)


def test_files_of_other_tasks_beside_the_boxes_are_left_alone(tmp_path: Path) -> None:
    root = tmp_path / "root"
    content = coco_content(dict.fromkeys(["a.png", "b.png"], BOX), {1: "cup"})
    write_coco(root, content)
    entry = {"image_id": 0, "segments_info": []}
    (root / "panoptic.json").write_text(json.dumps(content | {"annotations": [entry]}))
    splits = CustomFolder(cache=tmp_path / "cache")(root)
    assert not splits.problems


@pytest.mark.parametrize("val", ["test", "train"])
def test_no_split_is_made_that_is_not_wanted(val: str, shared: Path, tmp_path: Path) -> None:
    root = shared / "data/reports/roboflow_train_test"
    module = setup(root, CustomFolder(cache=tmp_path, val=val))
    assert len(module.train_dataset) == 10
    assert len(module.eval_dataset) == {"test": 4, "train": 10}[val]


def test_one_image_is_enough_to_validate_on_it(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    write_voc(root, {"a": CELLS["a"]})
    with pytest.raises(UserError, match=r"1 annotated images .*data\.source\.val=train"):
        CustomFolder(cache=tmp_path / "cache")(root)
    module = setup(root, CustomFolder(cache=tmp_path / "cache", val="train"))
    assert len(module.train_dataset) == len(module.eval_dataset) == 1
