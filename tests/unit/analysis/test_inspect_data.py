import base64
import json
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codetr.analysis.inspect_data import DataPage, as_html, as_text, inspect_data, write_page
from codetr.data.sources import Split, Splits
from codetr.errors import UserError


def write(root: Path, name: str, seed: int, boxes: list[list[float]]) -> Split:
    """Three pictures of noise, 60 x 40, with ``boxes`` (xywh) in the first."""
    (root / name).mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(3):
        pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name / f"{name}{i}.png")
    content = {
        "images": [
            {"id": i, "file_name": f"{name}{i}.png", "width": 60, "height": 40} for i in range(3)
        ],
        "annotations": [
            {"id": n, "image_id": 0, "category_id": 5, "bbox": box, "iscrowd": 0}
            for n, box in enumerate(boxes)
        ],
        "categories": [{"id": 5, "name": "<b>油 $x$"}, {"id": 8, "name": "never"}],
    }
    (root / f"{name}.json").write_text(json.dumps(content))
    return Split(annotations=root / f"{name}.json", images=root / name)


@pytest.fixture
def splits(tmp_path: Path) -> Splits:
    return Splits(
        train=write(tmp_path, "train", 0, [[2, 3, 10, 12], [20, 5, 30, 30]]),
        val=write(tmp_path, "val", 1, [[2, 3, 20, 20]]),
        remarks=("recognised by its smell",),
        problems=("a.xml: too long",),
    )


def rows(page: DataPage) -> dict[str, tuple[str, ...]]:
    return {name: tuple(cells) for name, *cells in (*page.table, *page.classes)}


def test_counts_sizes_and_aspect_ratios(splits: Splits) -> None:
    found = rows(inspect_data("mine", splits))
    assert found["images"] == ("3", "3")
    assert found["images without boxes"] == ("2", "2")
    assert found["boxes"] == ("2", "1")
    assert found["boxes per image: mean / most"] == ("0.7 / 2", "0.3 / 1")
    assert found["image width: least / median / most"] == ("60 / 60 / 60", "60 / 60 / 60")
    assert found["box width / height"] == ("0.83 / 0.92 / 1.00", "1.00 / 1.00 / 1.00")
    assert found["<b>油 $x$"] == ("2", "1")
    assert found["never"] == ("0", "0")


def test_problems_have_their_files(splits: Splits, tmp_path: Path) -> None:
    path = splits.train.annotations
    content = json.loads(path.read_text())
    flaws = {
        "no area": [5, 5, 0, 4],
        "beyond": [50, 5, 30, 4],
        "less than 2": [5, 5, 1, 9],
        "duplicate": [2, 3, 10, 12],
    }
    for text, box in flaws.items():
        content["annotations"].append(
            {"id": text, "image_id": 0, "category_id": 5, "bbox": box, "iscrowd": 0}
        )
    path.write_text(json.dumps(content))
    (tmp_path / "train/train1.png").write_bytes(b"")
    Image.new("RGB", (61, 40)).save(tmp_path / "train/train2.png")
    copy = (tmp_path / "train/train0.png").read_bytes()
    (tmp_path / "val/val2.png").write_bytes(copy)
    problems = inspect_data("mine", splits).problems
    expected = {
        "a.xml": "too long",
        "train1.png": "cannot decode",
        "train2.png": "61x40 pixels, the annotations say 60x40",
        "val2.png": "same image as train0.png in train",
        **{f"train0.png {text}": text for text in flaws},
    }
    assert len(problems) == len(expected)
    for name, text in expected.items():
        assert any(name.split()[0] in line and text in line for line in problems), name


def test_annotations_that_cannot_be_used_are_problems(splits: Splits) -> None:
    path = splits.train.annotations
    content = json.loads(path.read_text())
    before = inspect_data("mine", splits)
    good = content["annotations"][0]
    content["annotations"] += [
        {**good, "id": "a", "image_id": 99},
        {**good, "id": "b", "category_id": 6},
        {**good, "id": "c", "bbox": [1, 2, None, 4]},
        {"id": "d", "image_id": 0, "category_id": 5},
        {"id": "e", "image_id": 0, "bbox": [1, 2, 3, 4]},
    ]
    path.write_text(json.dumps(content))
    after = inspect_data("mine", splits)
    assert (after.table, after.classes) == (before.table, before.classes)
    assert after.problems[0] == "a.xml: too long"
    assert [line.removeprefix("train: ").split(str(path))[0] for line in after.problems[1:]] == [
        "annotation 'a' in ",
        "annotation 'b' in ",
        "annotation 'c' in ",
        "annotation 'd' in ",
        "annotation 'e' in ",
    ]


def test_the_number_of_pictures_is_checked(splits: Splits) -> None:
    with pytest.raises(UserError, match="shown=-1"):
        inspect_data("mine", splits, pictures=-1)
    assert inspect_data("mine", splits, pictures=0).pictures["train"] == b""


def test_page_is_one_file_with_its_pictures(splits: Splits, tmp_path: Path) -> None:
    page = inspect_data("<mine>", splits, pictures=2)
    web, text = write_page(page, tmp_path / "out/page.html")
    html = web.read_text(encoding="utf-8")
    assert html == as_html(page)
    assert text.read_text(encoding="utf-8") == as_text(page)
    assert not re.search(r'(src|href)="(?!data:image/)', html)
    assert "&lt;mine&gt;" in html
    assert "<b>" not in html
    pictures = re.findall(r"data:image/(\w+);base64,([^\"]+)", html)
    assert [kind for kind, _ in pictures] == ["jpeg", "jpeg", "png", "png"]
    for kind, content in pictures:
        image = Image.open(BytesIO(base64.b64decode(content)))
        assert image.format == kind.upper()
        assert min(image.size) > 100
        assert len(np.unique(np.asarray(image))) > 10
    for word in ("recognised by its smell", "a.xml: too long", "1 problems:"):
        assert word in html
        assert word in as_text(page)


def test_pictures_show_the_boxes(splits: Splits) -> None:
    from codetr.inference.draw import class_colour

    page = inspect_data("mine", splits, pictures=1)
    picture = np.asarray(Image.open(BytesIO(page.pictures["train"])).convert("RGB")).astype(int)
    colour = np.array(class_colour(0))
    near = (np.abs(picture - colour).max(axis=2) < 60).mean()
    assert near > 0.01


def test_a_split_without_boxes_has_no_pictures(tmp_path: Path) -> None:
    splits = Splits(
        train=write(tmp_path, "train", 0, [[2, 3, 10, 12]]), val=write(tmp_path, "val", 1, [])
    )
    page = inspect_data("mine", splits)
    assert page.pictures["val"] == b""
    assert "no image with boxes" in as_html(page)
    assert "val: has no usable box, which training refuses" in page.problems


def test_real_coco(shared: Path) -> None:
    root = shared / "data/coco_tiny"
    splits = Splits(
        train=Split(
            annotations=root / "annotations/instances_train2017.json", images=root / "train2017"
        ),
        val=Split(annotations=root / "annotations/instances_val2017.json", images=root / "val2017"),
    )
    page = inspect_data("coco", splits, pictures=2)
    assert rows(page)["images"] == ("80", "80")
    assert len(page.classes) == 81
    assert page.problems == ()
