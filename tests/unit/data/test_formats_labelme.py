import json
from pathlib import Path
from typing import Any

import pytest
from custom_folders import HEIGHT, WIDTH, write_images

from codetr.data.custom import CustomFolder, recognise
from codetr.data.formats import labelme
from codetr.data.formats.tree import list_files


def shape(label: Any, points: Any, kind: str = "rectangle", **more: Any) -> dict[str, Any]:
    """As LabelMe 5 writes one."""
    written = {"label": label, "points": points, "group_id": None, "description": ""}
    return {**written, "shape_type": kind, "flags": {}, "mask": None, **more}


def write(folder: Path, name: str, shapes: list[Any], **changes: Any) -> Path:
    """An image and its file."""
    write_images(folder, [f"{name}.png"])
    content = {
        **{"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": f"{name}.png"},
        **{"imageData": None, "imageHeight": HEIGHT, "imageWidth": WIDTH},
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content | changes), encoding="utf-8")
    return path


SQUARE = [[3, 4], [20, 4], [20, 22], [3, 22]]
KINDS = {
    "rectangle": shape("cup", [[3.0, 4.0], [20.0, 22.0]]),
    "drawn from below": shape("cup", [[20, 22], [3, 4]]),
    "four corners": shape("cup", SQUARE),
    "polygon": shape("cup", SQUARE, "polygon"),
    "of earlier versions": {"label": "cup", "points": SQUARE, "line_color": None},
    "texts": shape("cup", [["3", "4"], ["20", "22"]]),
    "circle": shape("cup", [[11, 13], [11, 22]], "circle"),
    "mask": shape("cup", [[3, 4], [20, 22]], "mask", mask="iVBORw0KGgo="),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_shape_with_an_area_is_a_box(kind: str, tmp_path: Path) -> None:
    write(tmp_path, "a", [KINDS[kind]])
    tree = list_files(tmp_path)
    assert recognise(tree) == "labelme"
    found = labelme.read(tree)
    assert found.categories == {1: "cup"}
    assert not found.problems
    (box,) = found.splits["unsplit"].images[0].boxes
    expected = (2, 4, 20, 22) if kind == "circle" else (3, 4, 20, 22)
    assert box.xyxy == expected
    assert ("segmentation" in box.extra) == (kind in ("polygon", "of earlier versions"))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_files_in_other_encodings_are_found_beside_usual_ones(
    encoding: str, tmp_path: Path
) -> None:
    write(tmp_path, "a", [KINDS["rectangle"]])
    other = write(tmp_path, "b", [KINDS["polygon"]])
    other.write_text(other.read_text(encoding="utf-8"), encoding=encoding)
    found = labelme.read(list_files(tmp_path))
    assert sum(len(image.boxes) for image in found.splits["unsplit"].images) == 2


@pytest.mark.parametrize(
    ("flawed", "reason"),
    [
        (shape("cup", [[3, 4]], "point"), "'point' of 1 points"),
        (shape("cup", [[3, 4], [5, 6]], "line"), "'line'"),
        (shape("cup", [[3, 4], [5, 6]], "polygon"), "'polygon' of 2 points"),
        (shape("cup", [[3, 4], [5]]), "give x, y each"),
        (shape("cup", [[3, 4], ["x", 5]]), "give x, y each"),
        (shape("cup", None), "give x, y each"),
        (shape("", [[3, 4], [5, 6]]), "must be a name"),
        (shape(None, [[3, 4], [5, 6]]), "must be a name"),
        (7, "not an object"),
    ],
)
def test_shapes_that_are_no_boxes_are_named_and_counted(
    flawed: Any, reason: str, tmp_path: Path
) -> None:
    write(tmp_path, "a", [KINDS["rectangle"], flawed, KINDS["rectangle"]])
    found = labelme.read(list_files(tmp_path))
    (problem,) = found.problems
    assert problem.text.startswith("shape 1 ")
    assert reason in problem.text
    (image,) = found.splits["unsplit"].images
    assert (len(image.boxes), image.flawed) == (2, 1)


def test_shapes_of_a_group_are_one_object(tmp_path: Path) -> None:
    parts = [
        shape("cup", [[3, 4], [9, 4], [9, 9]], "polygon", group_id=1),
        shape("pot", [[3, 4], [9, 4], [9, 9]], "polygon", group_id=1),
        shape("cup", [[12, 10], [20, 10], [20, 22]], "polygon", group_id=1),
    ]
    write(tmp_path, "a", parts)
    found = labelme.read(list_files(tmp_path))
    boxes = found.splits["unsplit"].images[0].boxes
    assert found.remarks == ("1 shapes were joined to others of their label and group_id",)
    assert [box.xyxy for box in boxes] == [(3, 4, 20, 22), (3, 4, 9, 9)]
    assert len(boxes[0].extra["segmentation"]) == 2


@pytest.mark.parametrize("path", ["..\\pictures\\a.png", "C:\\them\\a.png", "gone.png", 5, None])
def test_image_is_found_by_its_path_or_by_the_name_of_the_file(path: Any, tmp_path: Path) -> None:
    write(tmp_path / "labels", "a", [KINDS["rectangle"]], imagePath=path)
    (tmp_path / "labels/a.png").rename(tmp_path / "a.png")
    found = labelme.read(list_files(tmp_path))
    assert [image.file for image in found.splits["unsplit"].images] == ["a.png"]


def test_an_image_that_is_only_in_the_file_is_said(tmp_path: Path) -> None:
    write(tmp_path, "b", [KINDS["rectangle"]])
    write(tmp_path, "a", [KINDS["rectangle"]], imageData="iVBORw0KGgo=")
    (tmp_path / "a.png").unlink()
    found = labelme.read(list_files(tmp_path))
    assert "imageData" in found.splits["unsplit"].lost[0].text


def test_from_folders_of_splits_to_coco(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        write(root / split, name, [KINDS["polygon"], shape("no", [[1, 1], [5, 5]])])
    splits = CustomFolder(cache=tmp_path / "cache")(root)
    train = json.loads(splits.train.annotations.read_text())
    assert [image["file_name"] for image in train["images"]] == ["train/a.png", "train/b.png"]
    assert [c["name"] for c in train["categories"]] == ["cup", "no"]
    assert train["annotations"][0]["bbox"] == [3, 4, 17, 18]
    assert train["annotations"][0]["segmentation"] == [[3, 4, 20, 4, 20, 22, 3, 22]]
    assert len(json.loads(splits.val.annotations.read_text())["annotations"]) == 2


@pytest.mark.parametrize(
    "content", ["", "[", '{"shapes": 3, "imagePath": "a"}', '["shapes", "imagePath"]']
)
def test_files_that_are_broken_are_lost(content: str, tmp_path: Path) -> None:
    for name in "bcd":
        write(tmp_path, name, [KINDS["rectangle"]])
    text = content or '{"shapes": [], "imagePath": "a.png"'
    (tmp_path / "a.json").write_text(text)
    if '"shapes"' in text and '"imagePath"' in text:
        found = labelme.read(list_files(tmp_path))
        assert len(found.splits["unsplit"].images) == 3
        assert [p.file for p in found.problems] == ["a.json"]
