"""Every field of COCO JSON means the same to training, evaluation, inspection and conversion."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from custom_folders import write_images

from codetr.analysis.inspect_data import inspect_data
from codetr.classes import ClassList
from codetr.data.annotations import load_annotations
from codetr.data.augment import Chain
from codetr.data.custom import CustomFolder
from codetr.data.datamodule import CocoDataModule
from codetr.data.json_columns import as_flag, as_integer, as_number
from codetr.data.sources import CocoFolder, Source
from codetr.data.teachers import read_results
from codetr.errors import UserError
from codetr.evaluation.coco import CocoEvaluator
from codetr.evaluation.ground_truth import read_ground_truth
from codetr.structures import Detections, ImageInfo

CLASSES = ClassList(names=("ant", "bat"), category_ids=(1, 2))
Objects = list[tuple[int, int, tuple[float, ...], float, bool]]
"""Image id, category id, xywh, area and crowd of every object."""


def content(kind: str = "", key: str = "", value: Any = None) -> dict[str, Any]:
    """Two images of 40 x 30 with an object each, one value of the first entry of ``kind`` given."""
    made: dict[str, Any] = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in (1, 2)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": i, "bbox": [1, 2, 10, 8.5], "area": 20}
            for i in (1, 2)
        ],
        "categories": [{"id": 1, "name": "ant"}, {"id": 2, "name": "bat"}],
    }
    if kind:
        made[kind][0][key] = value
    return made


def write(root: Path, made: dict[str, Any]) -> Path:
    write_images(root, ["1.png", "2.png"])
    path = root / "labels.json"
    path.write_text(json.dumps(made))
    return path


def by_training(path: Path) -> Objects:
    found = load_annotations(path)
    corners, sides = found.boxes.double(), found.sides
    return [
        (
            found.image_ids[int(found.image_of_box[i])],
            found.classes.category_ids[int(found.labels[i])],
            (*corners[i, :2].tolist(), *sides[i].tolist()),
            float(found.area[i]),
            bool(found.crowd[i]),
        )
        for i in range(len(found.boxes))
    ]


def by_evaluation(path: Path) -> Objects:
    return [
        (number, CLASSES.category_ids[label], tuple(box), area, bool(crowd))
        for number, truth in read_ground_truth(path, CLASSES).items()
        for box, label, crowd, area in zip(
            truth.boxes_xywh_px.tolist(),
            truth.labels.tolist(),
            truth.crowd.tolist(),
            truth.area.tolist(),
            strict=True,
        )
    ]


def by_conversion(path: Path) -> Objects:
    """What training reads in the file that ``data=custom`` makes of it."""
    source = CustomFolder(cache=path.parent.parent / "cache", train="train", val="train")
    path.rename(path.parent / "train.json")
    write(path.parent / "val", content())  # a split that nobody reads: train is not divided
    (path.parent / "val/labels.json").rename(path.parent / "val.json")
    splits = source(path.parent)
    if splits.problems:
        raise UserError("; ".join(splits.problems))
    return by_training(splits.train.annotations)


def by_looking(path: Path) -> Objects:
    flaws: list[str] = []
    load_annotations(path, flaws=flaws)
    if flaws:
        raise UserError("; ".join(flaws))
    return by_training(path)


VIEWS: tuple[Callable[[Path], Objects], ...] = (
    by_training,
    by_evaluation,
    by_conversion,
    by_looking,
)


@pytest.fixture(params=VIEWS, ids=lambda view: view.__name__)
def view(request: pytest.FixtureRequest) -> Callable[[Path], Objects]:
    found: Callable[[Path], Objects] = request.param
    return found


FIRST = (1, 1, (1.0, 2.0, 10.0, 8.5), 20.0, False)
SECOND = (2, 2, (1.0, 2.0, 10.0, 8.5), 20.0, False)
MEANT = [
    *(("images", "id", v) for v in (1, 1.0, "1", "1.0", " 1", "0001")),
    *(("annotations", "image_id", v) for v in (1, 1.0, "1")),
    *(("annotations", "category_id", v) for v in (1, 1.0, "1")),
    *(("categories", "id", v) for v in (1, 1.0, "1")),
    *(("annotations", "id", v) for v in (1, 1.0, "1", "a", None, [])),  # only named
    *(("annotations", "iscrowd", v) for v in (0, False, None, "0", 0.0)),
    *(("annotations", "ignore", v) for v in (0, False, None, "0")),
    ("annotations", "bbox", ["1", "2.0", " 10", "8.5e0"]),
    *(("annotations", "area", v) for v in (20.0, "20", "2e1")),
    *((k, side, v) for k in ["images"] for side, v in (("width", "40"), ("height", 30.0))),
]


@pytest.mark.parametrize(("kind", "key", "value"), MEANT)
def test_what_a_value_can_only_mean(
    kind: str, key: str, value: Any, view: Callable[[Path], Objects], tmp_path: Path
) -> None:
    assert view(write(tmp_path / "root", content(kind, key, value))) == [FIRST, SECOND]


@pytest.mark.parametrize("value", [1, True, "1", 1.0])
def test_crowds(value: Any, view: Callable[[Path], Objects], tmp_path: Path) -> None:
    path = write(tmp_path / "root", content("annotations", "iscrowd", value))
    assert view(path) == [(*FIRST[:4], True), SECOND]


@pytest.mark.parametrize("area", [None, "missing"])
def test_without_an_area_that_of_the_box_counts(
    area: Any, view: Callable[[Path], Objects], tmp_path: Path
) -> None:
    made = content("annotations", "area", area)
    if area == "missing":
        del made["annotations"][0]["area"]
    path = write(tmp_path / "root", made)
    assert view(path) == [(*FIRST[:3], 85.0, False), SECOND]


NOT_MEANT = [
    *(("images", "id", v) for v in ("a", 1.5, None, True, [1], 2**63, "", "½")),
    ("images", "id", 2),  # stands twice
    *(("annotations", "image_id", v) for v in ("a", 1.5, None, True, 10**400, 7, {})),
    *(("annotations", "category_id", v) for v in ("ant", 1.5, None, False, 7)),
    *(("annotations", "iscrowd", v) for v in ("no", "", 2, -1, 0.5, [], "true")),
    *(("annotations", "ignore", v) for v in ("no", 2)),
    *(
        ("annotations", "bbox", v)
        for v in (
            None,
            "1 2 3 4",
            [1, 2, 3],
            [1, 2, 3, None],
            [1, 2, 3, True],
            [1, 2, 3, "1,5"],
            [1, 2, 3, "nan"],
            [1, 2, 3, "1_0"],
            [1, 2, 3, math.nan],
            [1, 2, 3, math.inf],
            [1, 2, 3, 10**400],
            {"x": 1, "y": 2, "w": 3, "h": 4},
        )
    ),
    *(("annotations", "area", v) for v in ("large", math.nan, [], True)),
    *((k, side, v) for k in ["images"] for side in ("width", "height") for v in ("wide", -1, 1.5)),
]


@pytest.mark.parametrize(("kind", "key", "value"), NOT_MEANT)
def test_what_cannot_be_meant_is_named_in_one_line(
    kind: str, key: str, value: Any, view: Callable[[Path], Objects], tmp_path: Path
) -> None:
    path = write(tmp_path / "root", content(kind, key, value))
    with pytest.raises(UserError) as error:
        view(path)
    line = str(error.value).split(";")[0]  # the first flaw; annotations of a lost image follow
    assert "\n" not in line
    entry = kind.removesuffix("s")
    assert f"{entry} " in line
    assert key in line
    assert ".json" in line


def test_images_without_sizes_are_no_flaw_where_files_are_looked_at(tmp_path: Path) -> None:
    for width in (0, None, "missing"):
        made = content("images", "width", width)
        if width == "missing":
            del made["images"][0]["width"]
        path = write(tmp_path / f"root{width}", made)
        with pytest.raises(UserError, match=r"image 1 .*width"):
            by_training(path)
        assert by_evaluation(path) == [FIRST, SECOND]
        assert by_conversion(path) == [FIRST, SECOND]


def test_a_flawed_entry_is_left_out_alone_when_looking(tmp_path: Path) -> None:
    made = content()
    made["images"].append(7)
    made["annotations"] += [None, {**made["annotations"][0], "id": 9, "bbox": ["x"] * 4}]
    flaws: list[str] = []
    found = load_annotations(write(tmp_path, made), flaws=flaws)
    assert (len(found), len(found.boxes)) == (2, 2)
    starts = [flaw.split(" in ")[0] for flaw in flaws]
    assert starts == ["image number 2", "annotation number 2", "annotation 9"]


def test_a_root_that_is_called_as_its_class_is_no_class(
    view: Callable[[Path], Objects], tmp_path: Path
) -> None:
    made = content("categories", "supercategory", "ant")
    made["categories"].append({"id": 0, "name": "ant", "supercategory": "none"})
    path = write(tmp_path / "root", made)
    assert load_annotations(path).classes == CLASSES
    assert view(path) == [FIRST, SECOND]


def test_numbers_and_flags() -> None:
    assert [as_number(v) for v in (3, -2.5, "1e2", ".5", "5.", "+1")] == [3, -2.5, 100, 0.5, 5, 1]
    for value in ("٣", "0x10", "inf", "1 2", b"1", "1e999", 1j):
        assert as_number(value) is None
    assert as_integer(str(2**63 - 1)) == 2**63 - 1  # not by way of a float
    assert as_integer(2.0**60) is None  # which integer was written is not known
    assert as_flag("01") is True


REPORTS = {
    "iscrowd_as_text": 4,
    "bbox_as_text": 3,
    "ids_as_float_or_text/float": 3,
    "ids_as_float_or_text/float_category_only": 3,
    "ids_as_float_or_text/numpytext": 3,
}


def sources(root: Path, cache: Path) -> dict[str, Source]:
    files = {
        kind: next(root.glob(f"annotations/instances_{kind}*")).stem for kind in ("train", "val")
    }
    folder = CocoFolder(
        train_annotations=f"annotations/{files['train']}.json",
        train_images=files["train"].removeprefix("instances_"),
        val_annotations=f"annotations/{files['val']}.json",
        val_images=files["val"].removeprefix("instances_"),
    )
    return {"coco": folder, "custom": CustomFolder(cache=cache)}


@pytest.mark.parametrize("data", ["coco", "custom"])
@pytest.mark.parametrize("name", REPORTS)
def test_reported_data_is_read_by_all(name: str, data: str, shared: Path, tmp_path: Path) -> None:
    root = shared / "data/reports" / name
    source = sources(root, tmp_path)[data]
    module = CocoDataModule(root, source, Chain(), Chain(), num_workers=0)
    module.setup("fit")
    trained = [module.train_dataset[i] for i in range(len(module.train_dataset))]
    assert [sample.targets.boxes.tolist() for sample in trained] == [[[10, 10, 40, 40]]] * REPORTS[
        name
    ]
    evaluator = CocoEvaluator(module.val_annotations, module.classes)
    assert sum((truth.crowd == 0).sum() for truth in evaluator.truth.values()) == REPORTS[name]
    assert [infos.image_id for infos in trained] == list(range(1, REPORTS[name] + 1))
    page = inspect_data(name, source(root))
    assert all("the same image as" in problem for problem in page.problems)
    assert {row[0]: row[1] for row in page.table}["boxes"] == str(REPORTS[name])


@pytest.mark.parametrize("data", ["coco", "custom"])
def test_images_may_have_names_for_ids(data: str, shared: Path, tmp_path: Path) -> None:
    """Whatever reads them means the same image, and what is written has the names."""
    root = shared / "data/reports/ids_as_float_or_text/text"
    module = CocoDataModule(root, sources(root, tmp_path)[data], Chain(), Chain(), num_workers=0)
    module.setup("fit")
    names = [f"img{i}" for i in (1, 2, 3)]
    annotations = module.eval_dataset.source.annotations
    assert list(annotations.written_ids) == names
    samples = [module.eval_dataset[i] for i in range(3)]
    assert [s.targets.boxes.tolist() for s in samples] == [[[10, 10, 40, 40]]] * 3
    evaluator = CocoEvaluator(module.val_annotations, module.classes)
    for sample in samples:
        info = ImageInfo(
            image_id=sample.image_id, original_size=sample.original_size, scale=(1.0, 1.0)
        )
        found = Detections(
            boxes_xyxy_px=sample.targets.boxes, labels=sample.targets.labels, scores=torch.ones(1)
        )
        evaluator.update([found], [info])
    assert evaluator.compute()["AP"] == 1
    evaluator.write_predictions(tmp_path / "predictions.json")
    records = json.loads((tmp_path / "predictions.json").read_text())
    assert [record["image_id"] for record in records] == names
    findings = read_results(tmp_path / "predictions.json", annotations)
    assert findings.boxes.boxes.tolist() == [[10, 10, 40, 40]] * 3
    assert findings.named.all()


def test_an_image_that_no_entry_names_so(tmp_path: Path) -> None:
    made = content("annotations", "image_id", "one")
    with pytest.raises(UserError, match=r"annotation 1 in .* has image_id 'one', which"):
        load_annotations(write(tmp_path, made))
    made["images"][0]["id"] = "one"
    assert load_annotations(write(tmp_path, made)).written_ids == ("one", 2)
    made["images"][1]["id"] = "one"
    with pytest.raises(UserError, match=r"image 'one' in .* has a duplicate id"):
        load_annotations(write(tmp_path, made))
