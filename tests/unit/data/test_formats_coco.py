import json
from pathlib import Path
from typing import Any

import pytest
from custom_folders import CELLS, coco_content, write_images

from codetr.data.formats import coco
from codetr.data.formats.content import FolderContent
from codetr.data.formats.tree import list_files
from codetr.errors import UserError

NAMES = {3: "cup", 9: "öl 油"}
FILES = {f"{name}.png": boxes for name, boxes in CELLS.items()}


def read(root: Path) -> FolderContent:
    return coco.read(list_files(root))


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def one_file(root: Path, **changes: Any) -> dict[str, Any]:
    """A single JSON beside the images, in one folder."""
    write_images(root, list(FILES))
    content = coco_content(FILES, NAMES) | changes
    write(root / "labels.json", content)
    return content


def files(found: FolderContent) -> dict[str, list[str]]:
    return {name: [image.file for image in split.images] for name, split in found.splits.items()}


def test_one_file_beside_the_images(tmp_path: Path) -> None:
    one_file(tmp_path)
    found = read(tmp_path)
    assert files(found) == {"unsplit": list(FILES)}
    assert found.categories == NAMES
    first = found.splits["unsplit"].images[0]
    assert [(NAMES[b.category], b.xyxy) for b in first.boxes] == CELLS["a"]
    assert not found.problems


def test_instances_in_annotations(tmp_path: Path) -> None:
    for split, names in (("train2017", "ab"), ("val2017", "cde")):
        chosen = {f"{name}.png": CELLS[name] for name in names}
        write_images(tmp_path / split, ["a.png", *chosen])  # a.png is in both folders
        write(tmp_path / f"annotations/instances_{split}.json", coco_content(chosen, NAMES))
        write(tmp_path / f"annotations/captions_{split}.json", {"annotations": [], "images": []})
    assert files(read(tmp_path)) == {
        "train": ["train2017/a.png", "train2017/b.png"],
        "val": ["val2017/c.png", "val2017/d.png", "val2017/e.png"],
    }


def test_roboflow_export_without_its_unused_root(tmp_path: Path) -> None:
    for split, names in (("train", "ab"), ("valid", "de")):
        chosen = {f"{name}.png": CELLS[name] for name in names}
        write_images(tmp_path / split, list(chosen))
        content = coco_content(chosen, {0: "things", **NAMES})
        for category in content["categories"]:
            category["supercategory"] = "none" if category["id"] == 0 else "things"
        write(tmp_path / split / "_annotations.coco.json", content)
    found = read(tmp_path)
    assert files(found) == {
        "train": ["train/a.png", "train/b.png"],
        "val": ["valid/d.png", "valid/e.png"],
    }
    assert found.categories == NAMES
    assert any("'things'" in remark for remark in found.remarks)


def test_paths_of_another_machine_are_found_by_their_end(tmp_path: Path) -> None:
    content = coco_content({f"/home/them/{name}": boxes for name, boxes in FILES.items()}, NAMES)
    write_images(tmp_path / "pictures", list(FILES))
    write(tmp_path / "result.json", content)
    assert files(read(tmp_path)) == {"unsplit": [f"pictures/{name}" for name in FILES]}


def test_crowds_are_ignored_and_segmentations_kept(tmp_path: Path) -> None:
    content = one_file(tmp_path)
    polygon = [[0, 0, 5, 0, 5, 5]]
    content["annotations"][0] |= {"iscrowd": 1, "segmentation": polygon}
    write(tmp_path / "labels.json", content)
    box = read(tmp_path).splits["unsplit"].images[0].boxes[0]
    assert box.ignored
    assert box.extra["segmentation"] == polygon


@pytest.mark.parametrize(
    ("kind", "index", "change", "reason"),
    [
        ("images", 1, {"id": 0}, "duplicate id"),
        ("images", 1, {"id": [7]}, "an integer"),
        ("images", 4, {"file_name": "gone.png"}, "is missing"),
        ("images", 4, {"file_name": None}, "file_name None"),
        ("annotations", 0, {"image_id": 1}, "not a usable image"),
        ("annotations", 0, {"category_id": 1}, "'categories' does not have"),
        ("annotations", 0, {"category_id": [3]}, "an integer"),
        ("annotations", 0, {"bbox": [1, 2, 3]}, "four finite numbers"),
        ("annotations", 0, {"bbox": [1, 2, 3, float("nan")]}, "four finite numbers"),
        ("annotations", 0, {"bbox": [1, 2, 3, 10**400]}, "four finite numbers"),
        ("annotations", 0, {"bbox": "1 2 3 4"}, "four finite numbers"),
        ("annotations", 1, {"id": 0}, "both were kept"),
    ],
)
def test_bad_entries_become_problems(
    tmp_path: Path, kind: str, index: int, change: dict[str, Any], reason: str
) -> None:
    content = one_file(tmp_path)
    content[kind][index] |= change
    write(tmp_path / "labels.json", content)
    problems = read(tmp_path).problems
    assert problems
    assert all(p.file == "labels.json" for p in problems)
    assert reason in problems[0].text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"images": [], "annotations": [', "not valid JSON, line 1"),
        ('{"images": [], "annotations": []}', "no list 'categories'"),
        ('{"images": {}, "annotations": [], "categories": []}', "no list 'images'"),
        ('["images", "annotations"]', "not the object"),
        ('{"images": [], "annotations": [], "categories": []}', "no categories"),
        ('{"images":[],"annotations":[],"categories":[{"id":"x","name":"a"}]}', "an integer id"),
        ('{"images": [], "annotations": ' + "[" * 100_000, "not usable JSON"),
        ('{"images": [], "annotations": ' + "9" * 5000, "not usable JSON"),
    ],
)
def test_bad_files_are_errors_that_name_them(tmp_path: Path, content: str, reason: str) -> None:
    write_images(tmp_path, list(FILES))
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(UserError, match=reason) as error:
        read(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_two_files_of_one_split_are_an_error(tmp_path: Path) -> None:
    one_file(tmp_path)
    write(tmp_path / "more.json", coco_content(FILES, NAMES))
    with pytest.raises(UserError, match=r"labels\.json and more\.json"):
        read(tmp_path)


def test_no_file_at_all_is_an_error(tmp_path: Path) -> None:
    write_images(tmp_path, list(FILES))
    with pytest.raises(UserError, match=r"no JSON file .*data\.source\.format"):
        read(tmp_path)


def test_one_id_with_two_names_is_an_error(tmp_path: Path) -> None:
    write_images(tmp_path, list(FILES))
    write(tmp_path / "train.json", coco_content(FILES, NAMES))
    write(tmp_path / "val.json", coco_content(FILES, {3: "öl 油", 9: "cup"}))
    with pytest.raises(UserError, match="one name"):
        read(tmp_path)
