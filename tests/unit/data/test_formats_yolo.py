from pathlib import Path

import pytest
from custom_folders import CELLS, write_images, write_yolo, yolo_lines

from codetr.data.formats import yolo
from codetr.data.formats.content import FolderContent
from codetr.data.formats.tree import list_files
from codetr.errors import UserError

NAMES = ["cup", "öl 油"]
SPLITS = {
    "train": {name: CELLS[name] for name in "abc"},
    "valid": {"d": CELLS["d"]},
    "test": {"e": CELLS["e"]},
}


def read(root: Path) -> FolderContent:
    return yolo.read(list_files(root))


def counts(found: FolderContent) -> dict[str, int]:
    return {name: len(split.images) for name, split in found.splits.items()}


def test_reads_boxes_classes_and_splits_of_data_yaml(tmp_path: Path) -> None:
    found = read(write_yolo(tmp_path, SPLITS, NAMES))
    assert found.categories == dict(enumerate(NAMES))
    assert counts(found) == {"train": 3, "val": 1, "test": 1}
    first = found.splits["train"].images[0]
    assert first.file == "train/images/a.png"
    assert first.relative
    for box, (name, (x0, y0, x1, y1)) in zip(first.boxes, CELLS["a"], strict=True):
        assert found.categories[box.category] == name
        assert box.xyxy == pytest.approx((x0 / 40, y0 / 30, x1 / 40, y1 / 30))
    assert not found.problems


@pytest.mark.parametrize("path", ["/home/them/data", "../datasets/cells", "."])
def test_paths_of_another_machine_are_found_here(tmp_path: Path, path: str) -> None:
    for split, names in (("train", "abc"), ("val", "d")):
        write_images(tmp_path / "images" / split, [f"{name}.png" for name in names])
    (tmp_path / "data.yaml").write_text(
        f"path: {path}\ntrain: {path}/images/train\nval: [images/val]\nnames: {{0: cup, 5: pot}}\n"
    )
    found = read(tmp_path)
    assert counts(found) == {"train": 3, "val": 1}
    assert found.categories == {0: "cup", 5: "pot"}


def test_lists_of_images(tmp_path: Path) -> None:
    write_yolo(tmp_path, SPLITS, NAMES)
    lines = (
        "./train/images/a.png",
        "/x/train/images/c.png",
        "",
        "no.png",
        "data\\train\\images\\b.png",
    )
    (tmp_path / "train.txt").write_text("\n".join(lines))
    (tmp_path / "data.yaml").write_text("train: train.txt\nval: valid/images\nnames: [a, b]\n")
    found = read(tmp_path)
    assert counts(found) == {"train": 3, "val": 1}
    (problem,) = found.problems
    assert str(problem) == "train.txt: line 4 ('no.png') is no image below the root; it was skipped"
    assert list(found.splits["train"].lost) == [problem]


def test_labels_beside_images_with_a_list_of_names(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png", "b.png", "c.png"])
    (tmp_path / "a.txt").write_text(yolo_lines(CELLS["a"], NAMES))
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbf" + yolo_lines(CELLS["b"], NAMES).encode())
    (tmp_path / "classes.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    found = read(tmp_path)
    assert counts(found) == {"unsplit": 3}
    assert [len(image.boxes) for image in found.splits["unsplit"].images] == [2, 1, 0]
    assert found.categories == dict(enumerate(NAMES))
    assert any("1 images without label file" in remark for remark in found.remarks)
    assert not found.problems


def test_polygons_become_boxes_and_keypoints_are_passed_over(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    (tmp_path / "a.txt").write_text("0 0.1 0.2 0.5 0.3 0.4 0.9\n")
    config = tmp_path / "data.yaml"
    config.write_text("names: [cup]\n")
    (image,) = read(tmp_path).splits["unsplit"].images
    assert image.boxes[0].xyxy == (0.1, 0.2, 0.5, 0.9)
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.5 0.5 0.4 0.9 0.1 0.1\n")
    config.write_text("names: [cup]\nkpt_shape: [2, 2]\n")
    (image,) = read(tmp_path).splits["unsplit"].images
    assert image.boxes[0].xyxy == (0.25, 0.25, 0.75, 0.75)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 0.5 0.5 0.1", "4 columns"),
        ("0 0.5 0.5 0.1 0.1 0.99", "6 columns"),
        ("cup 0.5 0.5 0.1 0.1", "no number"),
        ("2 0.5 0.5 0.1 0.1", "does not name"),
        ("-1 0.5 0.5 0.1 0.1", "does not name"),
        ("0.5 0.5 0.5 0.1 0.1", "does not name"),
        ("0 nan 0.5 0.1 0.1", "not finite"),
        ("0 1e999 0.5 0.1 0.1", "not finite"),
    ],
)
def test_bad_lines_are_left_out_with_a_reason(tmp_path: Path, line: str, reason: str) -> None:
    write_yolo(tmp_path, SPLITS, NAMES)
    (tmp_path / "train/labels/c.txt").write_text(f"{line}\n1 0.5 0.5 0.1 0.1\n")
    found = read(tmp_path)
    (problem,) = found.problems
    assert problem.file == "train/labels/c.txt"
    assert problem.text.startswith("line 1 ")
    assert reason in problem.text
    assert len(found.splits["train"].images[2].boxes) == 1


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("", "no names"),
        ("names: [a, b", "not valid YAML, line 2"),
        ("names: 3", "give a list"),
        ("names: []", "no class names"),
        ("names: [a, '']", "a name"),
        ("names:\n- a\n-\n", "a name"),
        ("names: {0: a, 00: b}", "once"),
        ("names: {0: a, 0: b}", "twice"),
        ("names: {[0]: a}", "not a string"),
        ("names: {x: a}", "a name"),
        ("a: &a [1]\nnames: [*a, *a]", "aliases"),
        ("names: 2001-99-99", "give a list"),
        ("names: " + "[" * 5000, "nested"),
    ],
)
def test_bad_configurations_are_errors_that_name_the_file(
    tmp_path: Path, config: str, reason: str
) -> None:
    write_yolo(tmp_path, SPLITS, NAMES)
    (tmp_path / "data.yaml").write_text(f"\n{config}")
    with pytest.raises(UserError, match=reason) as error:
        read(tmp_path)
    assert str(tmp_path / "data.yaml") in str(error.value)
    assert "\n" not in str(error.value)


WRITTEN = ("yes", "No", "on", "off", "true", "1.0", "010", "0x1F", "1_000", "1:30", "1e3", ".inf")
WRITTEN += ("null", "~", "Null", "2001-01-01", "2001-01-01 10:00:00", "7", "=", "<<", "a  b")


@pytest.mark.parametrize("form", ["list", "mapping", "inline", "lines"])
@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_a_class_is_called_what_is_written(tmp_path: Path, form: str, quote: str) -> None:
    write_yolo(tmp_path, SPLITS, NAMES)
    quoted = [f"{quote}{name}{quote}" for name in WRITTEN]
    text = {
        "list": "names:\n" + "".join(f"- {name}\n" for name in quoted),
        "mapping": "names:\n" + "".join(f"  {i}: {name}\n" for i, name in enumerate(quoted)),
        "inline": f"names: [{', '.join(quoted)}]\n",
        "lines": "\n".join(WRITTEN),
    }[form]
    if form == "lines":
        (tmp_path / "data.yaml").unlink()
    file = "classes.txt" if form == "lines" else "data.yaml"
    (tmp_path / file).write_text(text)
    assert tuple(read(tmp_path).categories.values()) == WRITTEN


def test_labels_without_names_are_an_error(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(UserError, match=r"classes\.txt"):
        read(tmp_path)
