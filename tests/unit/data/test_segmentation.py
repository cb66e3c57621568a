import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO

from codetr.classes import ClassList
from codetr.data.annotations import load_annotations
from codetr.data.outlines import area_of, box_of
from codetr.data.segmentation import read_segmentations
from codetr.errors import UserError
from codetr.evaluation.ground_truth import read_ground_truth

PATH = Path("a.json")
SIZE = (20, 30)


def _read(*segmentations: Any, crowd: bool = False) -> Any:
    annotations = [{"id": i, "segmentation": s} for i, s in enumerate(segmentations)]
    count = len(annotations)
    return read_segmentations(
        annotations, torch.full((count,), crowd), torch.tensor([SIZE] * count), PATH
    )


def test_every_notation_gives_its_pixels() -> None:
    square = [[2, 3, 12, 3, 12, 9, 2, 9]]
    two = [*square, [20, 10, 28, 10, 28, 18, 20, 18]]
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[4:7, 5:11] = 1
    compressed = rle.encode(mask)
    text = {"size": list(SIZE), "counts": compressed["counts"].decode()}
    plain = {"size": list(SIZE), "counts": [5 * 20 + 4, 3, *[17, 3] * 5, 600 - 6 * 20 - 84 - 3]}
    plain["counts"][-1] = 600 - sum(plain["counts"][:-1])
    masks = _read(square, two, text, plain).masks([2, 1, 3, 0], SIZE)
    assert masks.shape == (4, *SIZE)
    assert masks.dtype == torch.uint8
    assert masks[3].sum() == 60
    assert masks[3, 3:9, 2:12].all()
    assert masks[1].sum() == 60 + 64
    assert masks[0].equal(torch.from_numpy(mask.copy()))
    assert masks[2].equal(masks[0])
    assert _read(square).masks([], SIZE).shape == (0, *SIZE)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools with numpy 2
def test_parts_without_area_do_not_count() -> None:
    """As in pycocotools, which draws nothing for them."""
    square = [2, 3, 12, 3, 12, 9, 2, 9]
    parts = [square, [20, 10, 28, 18], [5, 5]]
    drawn = rle.decode(rle.merge(rle.frPyObjects(parts[:2], *SIZE)))
    assert _read(parts).masks([0], SIZE)[0].equal(torch.from_numpy(drawn.copy()))
    for same in (parts[::-1], square):
        assert _read(same).masks([0], SIZE).equal(_read([square]).masks([0], SIZE))
        assert box_of(same) == [2, 3, 10, 6]
        assert area_of(same) == 60


BAD = {
    "none": (None, "no polygon"),
    "empty": ([], "no polygon"),
    "two points": ([[1, 2, 3, 4], []], "three or more points"),
    "odd": ([[1, 2, 3, 4, 5, 6, 7]], "not a list of x, y"),
    "mixed": ([[1, 2, 3, 4, 5, 6], 7, 8], "not a list of x, y"),
    "text": ([[1, 2, "x", 4, 5, 6]], "not a finite number"),
    "truth value": ([[1, 2, True, 4, 5, 6]], "not a finite number"),
    "points": ([[[1, 1], [3, 1], [3, 3], [1, 3], [0, 1], [0, 2]]], "not a finite number"),
    "four points": ([[[1, 1], [3, 1], [3, 3], [1, 3]]], "not a finite number"),
    "not a number": ([[1, 2, float("nan"), 4, 5, 6]], "not a finite number"),
    "no float": ([[10**400, 1, 2, 3, 4, 5]], "not a finite number"),
    "far": ([[1e9, 1, 2, 3, 4, 5]], "far outside"),
    "size": ({"size": [20, 31], "counts": [620]}, r"size \[20, 31\]"),
    "too few pixels": ({"size": [20, 30], "counts": [2, 3]}, "of 5 pixels"),
    "too many pixels": ({"size": [20, 30], "counts": [2, 999]}, "exceed"),
    "negative": ({"size": [20, 30], "counts": [605, -5]}, "damaged"),
    "huge": ({"size": [20, 30], "counts": [10**30, 5]}, "damaged"),
    "fractions": ({"size": [20, 30], "counts": [600.5, 5]}, "damaged"),
    "texts": ({"size": [20, 30], "counts": ["600"]}, "damaged"),
    "no list": ({"size": [20, 30], "counts": None}, "damaged"),
    "nothing": ({"size": [20, 30], "counts": []}, "of 0 pixels"),
    "no ASCII": ({"size": [20, 30], "counts": "\u00e9\u20ac"}, "damaged"),
    "size of texts": ({"size": ["20", "30"], "counts": [600]}, "size"),
    "no size": ({"size": 5, "counts": [600]}, "size"),
    "no text": ({"size": [20, 30], "counts": 600}, "damaged"),
    "cut text": ({"size": [20, 30], "counts": "0550000000b1oooo"}, "damaged"),
    "no counts": ({"size": [20, 30]}, "counts"),
}


@pytest.mark.parametrize("name", BAD)
def test_they_give_no_box_either(name: str) -> None:
    value, _ = BAD[name]
    if name not in ("far", "size"):
        assert box_of(value) is None


def test_numbers_as_texts_are_taken_as_in_boxes() -> None:
    square = [2, 3, 12, 3, 12, 9, 2, 9]
    assert _read([[*map(str, square)]]).masks([0], SIZE).equal(_read([square]).masks([0], SIZE))


@pytest.mark.parametrize("name", BAD)
def test_bad_segmentations_are_named(name: str) -> None:
    value, reason = BAD[name]
    good = [[2, 3, 12, 3, 12, 9]]
    with pytest.raises(UserError, match=rf"annotation 1 in a\.json .*{reason}.*mix=null"):
        _read(good, value)
    assert len(_read(good, value, crowd=True).coordinates) == 0  # crowd regions need none


@pytest.mark.parametrize("name", BAD)
def test_evaluation_refuses_them_too(tmp_path: Path, name: str) -> None:
    value, reason = BAD[name]
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "segmentation": value}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}],
        "annotations": [entry],
        "categories": [{"id": 1, "name": "a"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    classes = ClassList(names=("a",), category_ids=(1,))
    with pytest.raises(UserError, match=rf"annotation 1 in .*{reason}.*evaluation\.masks=false"):
        read_ground_truth(tmp_path / "a.json", classes, masks=True)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools with numpy 2
def test_real_coco_equals_pycocotools(shared: Path) -> None:
    path = shared / "data/coco_tiny/annotations/instances_train2017.json"
    annotations = load_annotations(path, segmentations=True)
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(str(path))
    seen = 0
    for index, image in enumerate(annotations.image_ids[:20]):
        targets = annotations.targets(index)
        objects = [a for a in reference.imgToAnns[image] if not a["iscrowd"]]
        assert targets.masks is not None
        assert len(objects) == len(targets)
        for mask, annotation in zip(targets.masks, objects, strict=True):
            assert np.array_equal(mask.numpy(), reference.annToMask(annotation))
            seen += 1
    assert seen > 100


@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize("decimals", [0, 2, 7])
def test_polygons_of_any_precision_equal_pycocotools(decimals: int) -> None:
    """Hundredths are kept as integers, finer numbers as they are: rounding could move an edge."""
    rng = np.random.default_rng(decimals)
    polygons = [rng.uniform(0, 20, 2 * rng.integers(3, 7)).round(decimals) for _ in range(60)]
    polygons += [np.array([0.0999999, 5, 9.7, 5, 9.7, 9.4999999])]
    segmentations = [[polygon.tolist()] for polygon in polygons]
    found = _read(*segmentations)
    assert found.coordinates.dtype == torch.float64  # the last one's
    assert _read(*segmentations[:-1]).coordinates.dtype == (
        torch.float64 if decimals > 2 else torch.int32
    )
    for mask, value in zip(found.masks(range(len(polygons)), SIZE), segmentations, strict=True):
        expected = rle.decode(rle.merge(rle.frPyObjects(value, *SIZE)))
        assert np.array_equal(mask.numpy(), expected)
