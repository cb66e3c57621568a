import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from codetr.data.annotations import load_annotations
from codetr.errors import UserError

Write = Callable[[dict[str, Any]], Path]


def test_category_ids_with_holes_become_classes_sorted_by_id(content: Any, write: Write) -> None:
    annotations = load_annotations(write(content))
    assert annotations.classes.names == ("ant", "bat", "cup")
    assert annotations.classes.category_ids == (0, 3, 7)
    assert [annotations.targets(i).labels.tolist() for i in range(3)] == [[2], [0], [1]]
    assert annotations.targets(0).boxes.tolist() == [[2, 3, 12, 15]]


def test_boxes_stay_with_their_image_in_any_order(content: Any, write: Write) -> None:
    content["annotations"].append(dict(content["annotations"][0], id=900, bbox=[1, 1, 2, 2]))
    content["annotations"].reverse()
    annotations = load_annotations(write(content))
    assert annotations.targets(0).boxes.tolist() == [[1, 1, 3, 3], [2, 3, 12, 15]]
    assert annotations.image_of_box.tolist() == [0, 0, 1, 2]
    assert annotations.annotation_ids == (900, 100, 101, 102)


def test_crowd_and_degenerate_boxes_are_no_targets(content: Any, write: Write) -> None:
    template = content["annotations"][0]
    good = [-5.0, -5.0, 20.0, 20.0]  # clipped
    flawed = [[3, 3, 0, 5], [3, 3, 5, -1], [50, 3, 5, 5], [1e308, 1, 5, 5], [1, 1, 1e308, 5]]
    content["annotations"] = [
        dict(template, bbox=[0, 0, 30, 30], iscrowd=1),
        *(dict(template, bbox=box) for box in [*flawed, good]),
    ]
    annotations = load_annotations(write(content))
    assert annotations.targets(0).boxes.tolist() == [[0, 0, 15, 15]]
    assert annotations.targets(0).scores.tolist() == [1]
    assert annotations.degenerate.sum() == 5
    assert [len(annotations.targets(i)) for i in (1, 2)] == [0, 0]
    assert annotations.targets(1).boxes.shape == (0, 4)


@pytest.mark.parametrize(("count", "kept"), [(1, "0"), (2, "02"), (3, "012"), (9, "012")])
def test_few_images_are_spread_and_keep_boxes_and_classes_of_the_file(
    count: int, kept: str, content: Any, write: Write
) -> None:
    empty = dict(content["images"][0], id=77, file_name="empty.png")
    content["images"].insert(1, empty)
    whole = load_annotations(write(content))
    few = load_annotations(write(content), num_images=count)
    withs = [whole.file_names[i] for i in (0, 2, 3)]
    assert list(few.file_names) == [withs[int(i)] for i in kept]
    assert few.classes == whole.classes
    for i, name in enumerate(few.file_names):
        expected = whole.targets(whole.file_names.index(name))
        assert few.targets(i).boxes.equal(expected.boxes)
        assert few.targets(i).labels.equal(expected.labels)


def test_file_without_annotations(content: Any, write: Write) -> None:
    content["annotations"] = []
    annotations = load_annotations(write(content))
    assert annotations.boxes.shape == (0, 4)
    assert len(annotations.targets(2)) == 0


def test_unused_parent_category_is_no_class(content: Any, write: Write) -> None:
    for category in content["categories"]:
        category["supercategory"] = "things"
    content["categories"].insert(0, {"id": 1, "name": "things", "supercategory": "none"})
    path = write(content)
    assert load_annotations(path).classes.names == ("ant", "bat", "cup")
    content["annotations"][0]["category_id"] = 1  # used: a class like the others
    with_parent = load_annotations(write(content)).classes
    assert with_parent.names == ("ant", "things", "bat", "cup")
    content["annotations"][0]["category_id"] = 3
    assert load_annotations(write(content), with_parent).classes == with_parent


def test_category_that_is_its_own_supercategory_stays(content: Any, write: Write) -> None:
    content["categories"].append({"id": 9, "name": "person", "supercategory": "person"})
    assert "person" in load_annotations(write(content)).classes.names


def _set(key: str, value: Any) -> Callable[[Any], None]:
    return lambda content: content["annotations"][1].update({key: value})


BAD = {
    "category": (_set("category_id", 12), r"annotation 101 .*category_id 12, which 'categories'"),
    "category_text": (_set("category_id", "c"), r"annotation 101 .*category_id 'c'.*an integer"),
    "image": (_set("image_id", 77), r"annotation 101 .*image_id 77, which is not a usable"),
    "bbox": (_set("bbox", [1, 2, 3]), r"annotation 101 .*bbox \[1, 2, 3\]"),
    "bbox_null": (_set("bbox", [1, 2, 3, None]), r"annotation 101 .*None"),
    "no_bbox": (lambda c: c["annotations"][1].pop("bbox"), r"annotation 101 .*no 'bbox'"),
    "no_images": (lambda c: c.pop("images"), r"no list 'images'"),
    "list": (lambda c: c.update(annotations={"a": 1}), r"no list 'annotations'"),
    "no_file": (lambda c: c["images"][0].pop("file_name"), r"image 5 .*no 'file_name'"),
    "size": (lambda c: c["images"][0].update(width=0), r"image 5 .*width 0"),
    "twice": (lambda c: c["images"][0].update(id=15), r"image 15 .*a duplicate id"),
    "image_list": (lambda c: c["images"][0].update(id=[5]), r"image \[5\] .*an integer or a name"),
    "classes": (lambda c: c.update(categories=[], annotations=[]), r"no categories"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_content_is_named_in_one_line(content: Any, write: Write, name: str) -> None:
    damage, message = BAD[name]
    damage(content)
    path = write(content)
    with pytest.raises(UserError, match=message) as error:
        load_annotations(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"folder .*nowhere .*data\.root"):
        load_annotations(tmp_path / "nowhere" / "a.json")
    with pytest.raises(UserError, match=r"a\.json \(No such file"):
        load_annotations(tmp_path / "a.json")
    path = tmp_path / "b.json"
    path.write_text('{"images": [],\n "annotations": [}')
    with pytest.raises(UserError, match=r"b\.json is not valid JSON, line 2 column 18"):
        load_annotations(path)
    path.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(UserError, match=r"b\.json is not UTF-8 text"):
        load_annotations(path)
    path.write_text(json.dumps([1]))
    with pytest.raises(UserError, match="contains a JSON list"):
        load_annotations(path)


def test_real_coco(shared: Path) -> None:
    path = shared / "data/coco_tiny/annotations/instances_train2017.json"
    raw = json.loads(path.read_text())
    annotations = load_annotations(path)
    assert len(annotations.classes) == 80
    assert annotations.classes.category_ids[-1] == 90
    targets = [a for a in raw["annotations"] if not a["iscrowd"]]
    assert sum(len(annotations.targets(i)) for i in range(len(annotations))) == len(targets)
    areas = sum(a["bbox"][2] * a["bbox"][3] for a in targets)
    ours = torch.cat([annotations.targets(i).boxes for i in range(len(annotations))]).double()
    size = ours[:, 2:] - ours[:, :2]
    assert size.prod(dim=1).sum().item() == pytest.approx(areas, rel=1e-4)
