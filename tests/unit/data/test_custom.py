import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from custom_folders import CELLS, coco_content, voc_xml, write_images, write_voc, write_yolo
from PIL import ExifTags, Image

from codetr.data.annotations import CocoAnnotations, load_annotations
from codetr.data.custom import CustomFolder, recognise
from codetr.data.formats.content import LabelledImage, Problem, SplitContent
from codetr.data.formats.tree import list_files, split_of_name
from codetr.data.images import read_geometry, read_image, read_scaled
from codetr.data.sources import Splits
from codetr.data.split_choice import divide
from codetr.errors import UserError

NAMES = ["cup", "öl 油"]
Boxes = dict[str, list[tuple[str, list[float]]]]


def convert(root: Path, **options: object) -> Splits:
    return CustomFolder(cache=root.parent / "cache", **options)(root)  # type: ignore[arg-type]


def load(splits: Splits) -> tuple[CocoAnnotations, CocoAnnotations]:
    train = load_annotations(splits.train.annotations)
    return train, load_annotations(splits.val.annotations, train.classes)


def boxes_of(*parts: CocoAnnotations) -> Boxes:
    """Names and corners by the stem of the image."""
    found: Boxes = {}
    for part in parts:
        for i, name in enumerate(part.file_names):
            targets = part.targets(i)
            labels = [part.classes.names[k] for k in targets.labels.tolist()]
            found[Path(name).stem] = list(zip(labels, targets.boxes.tolist(), strict=True))
    return found


def expected() -> Boxes:
    return {
        name: [(label, pytest.approx(box, abs=1e-3)) for label, box in boxes]
        for name, boxes in CELLS.items()
    }


def as_voc(root: Path) -> Path:
    return write_voc(root, CELLS)


def as_yolo(root: Path) -> Path:
    parts = {"train": {k: CELLS[k] for k in "abc"}, "valid": {k: CELLS[k] for k in "de"}}
    return write_yolo(root, parts, NAMES)


def as_coco(root: Path) -> Path:
    images = {f"{name}.png": boxes for name, boxes in CELLS.items()}
    write_images(root / "images", list(images))
    content = coco_content(images, {3: NAMES[0], 9: NAMES[1]})
    (root / "labels.json").write_text(json.dumps(content))
    return root


FORMATS = {"voc": as_voc, "yolo": as_yolo, "coco": as_coco}


@pytest.fixture(params=FORMATS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same images and boxes in every format."""
    root = tmp_path / request.param
    root.mkdir()
    make: Callable[[Path], Path] = FORMATS[request.param]
    return make(root)


def test_every_format_gives_the_same_boxes(folder: Path) -> None:
    splits = convert(folder)
    train, val = load(splits)
    assert boxes_of(train, val) == expected()
    assert train.classes == val.classes
    assert train.classes.names == tuple(NAMES)
    assert not splits.problems
    assert {len(train), len(val)} in ({4, 1}, {3, 2})


def test_format_is_recognised_and_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert recognise(list_files(folder)) == folder.name
    with caplog.at_level("INFO"):
        convert(folder)
    assert {"voc": "VOC", "yolo": "YOLO", "coco": "COCO"}[folder.name] in caplog.text
    assert "2 classes: cup, öl 油" in caplog.text


def test_nothing_of_the_users_is_changed_and_conversion_happens_once(folder: Path) -> None:
    before = {p: p.stat() for p in folder.rglob("*")}
    splits = convert(folder)
    written = splits.train.annotations.stat().st_mtime_ns
    again = convert(folder)
    assert again == splits
    assert again.train.annotations.stat().st_mtime_ns == written
    after = {p: p.stat() for p in folder.rglob("*")}
    assert {p: s.st_mtime_ns for p, s in after.items()} == {
        p: s.st_mtime_ns for p, s in before.items()
    }
    assert [p.name for p in (folder.parent / "cache").iterdir()] == [
        splits.train.annotations.parent.name
    ]


def test_a_changed_file_or_option_converts_anew(folder: Path) -> None:
    first = convert(folder).train.annotations.parent
    image = next(p for p in sorted(folder.rglob("*.png")))
    os.utime(image, (1, 1))
    second = convert(folder).train.annotations.parent
    third = convert(folder, seed=1).train.annotations.parent
    assert len({first, second, third}) == 3


def test_cache_within_the_root_is_not_part_of_it(tmp_path: Path) -> None:
    write_voc(tmp_path, CELLS)
    source = {"cache": tmp_path / "converted"}
    first = CustomFolder(**source)(tmp_path)
    assert CustomFolder(**source)(tmp_path) == first


def test_two_formats_are_an_error_with_its_remedy(tmp_path: Path) -> None:
    root = as_voc(tmp_path / "both")
    (root / "labels.json").write_text(
        json.dumps(coco_content({"a.png": CELLS["a"]}, {1: "cup", 2: NAMES[1]}))
    )
    with pytest.raises(UserError, match=r"data\.source\.format=voc"):
        convert(root)
    assert len(load(convert(root, format="voc"))[0]) == 4


def test_a_folder_without_annotations_is_an_error(tmp_path: Path) -> None:
    write_images(tmp_path / "root", ["a.png"])
    with pytest.raises(UserError, match="1 images among 1 files"):
        convert(tmp_path / "root")
    with pytest.raises(UserError, match="does not exist"):
        convert(tmp_path / "nowhere")


@pytest.mark.parametrize("options", [{"format": "xml"}, {"val_share": 0.0}, {"val_share": 1.0}])
def test_bad_options_are_errors(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"data\.source\."):
        CustomFolder(**options)  # type: ignore[arg-type]


def test_test_split_is_left_alone_until_it_is_asked_for(tmp_path: Path) -> None:
    sets = {"train": ["a", "b"], "val": ["c", "d"], "test": ["e"]}
    root = write_voc(tmp_path / "root", CELLS, sets)
    assert set(boxes_of(*load(convert(root)))) == set("abcd")
    train, val = load(convert(root, val="test"))
    assert (set(boxes_of(train)), set(boxes_of(val))) == ({"a", "b"}, {"e"})
    assert train.classes == val.classes
    with pytest.raises(UserError, match="no images for the split 'dev', only for"):
        convert(root, val="dev")


def test_split_without_val_takes_it_from_train_and_not_from_test(tmp_path: Path) -> None:
    sets = {"train": ["a", "b", "c", "d"], "test": ["e"]}
    root = write_voc(tmp_path / "root", CELLS, sets)
    train, val = load(convert(root))
    assert (len(train), len(val)) == (3, 1)
    assert "e" not in boxes_of(train, val)


def test_val_of_which_no_image_can_be_used_is_not_drawn_from_train(tmp_path: Path) -> None:
    sets = {"train": ["a", "b", "c", "d"], "val": ["gone", "lost"]}
    root = write_voc(tmp_path / "root", CELLS, sets)
    with pytest.raises(UserError, match=r"none of the 2 images of the split 'val'.*'gone'"):
        convert(root)


def test_division_is_seeded_whole_and_whatever_the_order() -> None:
    images = [LabelledImage(file=f"{i}.png", source="", boxes=()) for i in range(50)]
    whole = SplitContent(images=images, lost=[Problem(file=f, text="") for f in "abc"], flawed=6)
    parts = divide(whole, 0.2, 0)
    assert {name: len(part.images) for name, part in parts.items()} == {"train": 40, "val": 10}
    assert {i.file for part in parts.values() for i in part.images} == {i.file for i in images}
    assert [*parts["train"].lost, *parts["val"].lost] == whole.lost
    assert (parts["train"].flawed, parts["val"].flawed) == (5, 1)
    assert divide(replace(whole, images=images[::-1]), 0.2, 0) == parts
    assert divide(whole, 0.2, 1) != parts
    assert len(divide(replace(whole, images=images[:2]), 0.01, 0)["val"].images) == 1
    with pytest.raises(UserError, match="1 annotated images cannot be split"):
        divide(replace(whole, images=images[:1]), 0.2, 0)


@pytest.mark.parametrize("ending", [".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"])
def test_images_turned_by_exif_have_the_size_that_is_read(tmp_path: Path, ending: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = tmp_path / f"a{ending}"
    Image.new("RGB", (40, 30)).save(path, exif=exif)
    assert read_geometry(path).size == tuple(read_image(path).shape[1:]) == (40, 30)
    assert read_scaled(path, None)[1] == (40, 30)
    Image.new("RGB", (40, 30)).save(path)
    assert read_geometry(path).size == tuple(read_image(path).shape[1:]) == (30, 40)


def test_flaws_of_boxes_and_images_are_reported_with_their_files(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "root", CELLS, {"train": list("abcd"), "val": ["e"]})
    annotations = root / "Annotations"
    boxes = [("cup", (-8, 2, 10, 12)), ("cup", (8, 2, 9, 12)), ("cup", (60, 2, 70, 9))]
    (annotations / "a.xml").write_text(voc_xml(boxes))  # an edge below 0: no pixel is 1
    (root / "JPEGImages/c.png").write_bytes(b"no image")
    splits = convert(root)
    found = boxes_of(*load(splits))
    assert set(found) == {"a", "b", "d", "e"}
    assert found["a"] == [("cup", [0, 3, 10, 12])]
    for text in ("was clipped", "has no area", "outside the image of 40x30"):
        assert any(
            p.startswith("Annotations/a.xml: object ") and text in p for p in splits.problems
        )
    assert any(p.startswith("JPEGImages/c.png: cannot read") for p in splits.problems)
    assert len(splits.problems) == 4


def test_losing_most_images_is_an_error(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "root", CELLS)
    for name in "abcd":
        (root / f"JPEGImages/{name}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot be used; the first one: JPEGImages/"):
        convert(root)


@pytest.mark.parametrize("kind", ["coco", "voc", "voc lists", "yolo lists"])
@pytest.mark.parametrize("present", [2, 3])
def test_images_that_are_not_there_are_lost_too(kind: str, present: int, tmp_path: Path) -> None:
    """Of five images that the training split names, fewer than half are an error."""
    root = tmp_path / "root"
    val = {"v": CELLS["a"], "w": CELLS["e"]}
    files = [f"{name}.png" for name in CELLS]
    if kind == "coco":
        for split, boxes in (("train", CELLS), ("val", val)):
            images = {f"{name}.png": box for name, box in boxes.items()}
            write_images(root / split, list(images))
            content = coco_content(images, {3: NAMES[0], 9: NAMES[1]})
            (root / split / "_annotations.coco.json").write_text(json.dumps(content))
        folder = root / "train"
    elif kind.startswith("voc"):
        sets = {"train": list(CELLS), "val": list(val)} if kind == "voc lists" else None
        write_voc(root if sets else root / "train", CELLS | (val if sets else {}), sets)
        if not sets:
            write_voc(root / "val", val)
        folder = root / "JPEGImages" if sets else root / "train/JPEGImages"
    else:
        write_yolo(root, {"train": CELLS, "valid": val}, NAMES)
        lines = "".join(f"data\\train\\images\\{file}\n" for file in files)
        (root / "train.txt").write_text(lines)
        config = root / "data.yaml"
        config.write_text(config.read_text().replace("train: ", "train: train.txt # "))
        folder = root / "train/images"
    for file in files[present:]:
        (folder / file).unlink()
    if present == 2:
        with pytest.raises(UserError, match=r"3 of 5 images of a split .*; the first one: "):
            convert(root)
    else:
        splits = convert(root)
        assert [len(part) for part in load(splits)] == [3, 2]
        assert len(splits.problems) >= 2


def test_lost_images_of_undivided_data_are_shared_between_its_parts(tmp_path: Path) -> None:
    root = as_voc(tmp_path / "root")
    for name in "abc":
        (root / f"JPEGImages/{name}.png").unlink()
    with pytest.raises(UserError, match=r"cannot be used; the first one: Annotations/a\.xml"):
        convert(root)


def test_images_keep_their_ids_or_get_one_of_their_name(folder: Path) -> None:
    """So that results by image id, as teachers' boxes are, fit another division of the data too."""

    def ids(seed: int) -> dict[str, int]:
        parts = load(convert(folder, seed=seed))
        return {n: i for p in parts for n, i in zip(p.file_names, p.image_ids, strict=True)}

    first = ids(0)
    assert len(set(first.values())) == 5
    assert first == ids(1)
    if folder.name == "coco":
        entries = json.loads((folder / "labels.json").read_text())["images"]
        assert first == {f"images/{e['file_name']}": e["id"] for e in entries}
    extra = next(folder.rglob("a.png"))
    write_images(extra.parent, ["0.png"])
    if folder.name == "voc":
        (folder / "Annotations/0.xml").write_text(voc_xml(CELLS["a"], "0.png"))
    assert first.items() <= ids(0).items()


def test_one_image_with_two_annotation_files_is_two_entries(tmp_path: Path) -> None:
    root = as_voc(tmp_path / "root")
    (root / "Annotations/other.xml").write_text(voc_xml(CELLS["b"], "a.png"))
    parts = load(convert(root))
    assert sum(map(len, parts)) == 6


def test_an_image_in_both_splits_is_said(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "root", CELLS, {"train": ["a", "b"], "val": ["b", "d"]})
    assert any("1 images are in both splits" in remark for remark in convert(root).remarks)


def test_one_class_and_segmentations_survive(tmp_path: Path) -> None:
    images = {f"{i}.png": [("cup", (2, 3, 12, 15))] for i in range(3)}
    content = coco_content(images, {17: "cup"})
    for annotation in content["annotations"]:
        annotation |= {"segmentation": [[2, 3, 12, 3, 12, 15, 2, 15]], "area": 100}
    write_images(tmp_path / "root", list(images))
    (tmp_path / "root/all.json").write_text(json.dumps(content))
    splits = convert(tmp_path / "root")
    train = load_annotations(splits.train.annotations, segmentations=True)
    assert (train.classes.names, train.classes.category_ids) == (("cup",), (17,))
    masks = train.targets(0).masks
    assert masks is not None
    assert int(masks.sum()) == 10 * 12
    assert json.loads(splits.train.annotations.read_text())["annotations"][0]["area"] == 100


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("instances_train2017.json", "train"),
        ("valid", "val"),
        ("Test", "test"),
        ("trainval", None),
        ("train_and_val", None),
        ("evaluation", None),
        ("images", None),
    ],
)
def test_split_names_are_whole_words(name: str, split: str | None) -> None:
    assert split_of_name(name) == split


def test_real_voc_folder(shared: Path, tmp_path: Path) -> None:
    root = shared / "data/bccd_voc"
    splits = CustomFolder(cache=tmp_path)(root)
    train, val = load(splits)
    assert (len(train), len(val)) == (205, 87)
    assert train.classes.names == ("Platelets", "RBC", "WBC")
    assert torch.bincount(train.labels).tolist() == [209, 2382, 214]
    assert not splits.problems
    assert int(train.usable.sum()) == len(train.boxes)
