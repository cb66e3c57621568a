"""Which files are images, and every way in which a name finds its file, in all formats."""

from __future__ import annotations

import json
import logging
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from custom_folders import coco_content, voc_xml, write_images, yolo_lines
from PIL import Image, features

from codetr.analysis.inspect_data import inspect_data
from codetr.data.augment import Chain
from codetr.data.convert import CocoWriter
from codetr.data.custom import FORMATS, CustomFolder, recognise
from codetr.data.datamodule import CocoDataModule
from codetr.data.files import FileIndex, image_suffixes, is_image, resolve_file_names
from codetr.data.formats.tree import list_files
from codetr.data.images import read_image
from codetr.data.sources import CocoFolder, Source
from codetr.errors import UserError
from codetr.inference.sources import ImageFiles, open_source

BOX = [("cup", (3.0, 4.0, 20.0, 22.0))]
NFC, NFD = (unicodedata.normalize(form, "Bäume.png") for form in ("NFC", "NFD"))
COMPARISONS = {
    # as the annotations say; on the disk
    "as written": ("a b.png", "a b.png"),
    "decomposed": (NFC, NFD),
    "composed": (NFD, NFC),
    "case": ("IMG_1.PNG", "IMG_1.png"),
    "case of another alphabet": ("ÖL.png", "öl.png"),
    "%-encoded": ("gr%C3%B6%C3%9Fe%20%283%29.png", "größe (3).png"),
    "%-encoded on the disk": ("a b.png", "a%20b.png"),
    "a plus": ("a%2Bb.png", "a+b.png"),
    "suffix": ("a.jpg", "a.png"),
    "no suffix": ("a.1", "a.1.png"),
    "all of it": ("B%C3%84UME.JPG", NFD),
}


@pytest.fixture
def photo(tmp_path: Path) -> Callable[[str], Path]:
    """Write an image under a name; its folder."""

    def write(name: str) -> Path:
        folder = tmp_path / "root/photos"
        write_images(folder, [name])
        return folder

    return write


def coco(root: Path, name: str, url: str = "") -> None:
    content = coco_content({url + name: BOX}, {1: "cup"})
    (root / "labels.json").write_text(json.dumps(content))


def found_by_custom(root: Path) -> tuple[list[str], list[list[float]], str]:
    """Files and boxes of all splits as conversion writes them, and what is said."""
    tree = list_files(root)
    found = FORMATS[recognise(tree)].read(tree)
    problems = list(found.problems)
    writer = CocoWriter(root=root, categories=found.categories, problems=problems)
    (content,) = writer.contents([[i for split in found.splits.values() for i in split.images]])
    return (
        [image["file_name"] for image in content["images"]],
        [annotation["bbox"] for annotation in content["annotations"]],
        "\n".join((*found.remarks, *map(str, problems))),
    )


@pytest.mark.parametrize("way", COMPARISONS)
def test_an_index_finds_it(way: str) -> None:
    name, file = COMPARISONS[way]
    index = FileIndex([f"photos/{file}", "photos/other.png"])
    assert index.at(f"photos/{name}") == index.named(name) == [f"photos/{file}"]
    assert index.named(f"C:\\them\\photos\\{name}") == [f"photos/{file}"]
    assert index.at(name) == []


@pytest.mark.parametrize("way", COMPARISONS)
def test_coco_folders_find_it(
    way: str, photo: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    name, file = COMPARISONS[way]
    folder = photo(file)
    coco(folder.parent, name)
    source = CocoFolder(
        train_annotations="labels.json",
        train_images="photos",
        val_annotations="labels.json",
        val_images="photos",
    )
    module = CocoDataModule(folder.parent, source, Chain(), Chain(), num_workers=0)
    with caplog.at_level(logging.INFO):
        module.setup("fit")
    assert len(module.train_dataset[0].targets) == len(module.eval_dataset[0].targets) == 1
    assert ("1 of 1 image files have other names" in caplog.text) == (name != file)


@pytest.mark.parametrize("url", ["", "/home/them/", "C:\\x\\", "http://localhost:80/data/1/"])
@pytest.mark.parametrize("way", COMPARISONS)
def test_converted_coco_finds_it(way: str, url: str, photo: Callable[[str], Path]) -> None:
    name, file = COMPARISONS[way]
    folder = photo(file)
    coco(folder.parent, name, url)
    files, boxes, said = found_by_custom(folder.parent)
    assert (files, boxes) == ([f"photos/{file}"], [[3, 4, 17, 18]])
    assert ("1 images have other names" in said) == (name != file)


@pytest.mark.parametrize("way", COMPARISONS)
def test_voc_finds_it(way: str, photo: Callable[[str], Path]) -> None:
    name, file = COMPARISONS[way]
    folder = photo(file)
    (folder.parent / "Annotations").mkdir()
    (folder.parent / "Annotations/0001.xml").write_text(voc_xml(BOX, name), encoding="utf-8")
    assert found_by_custom(folder.parent)[:2] == ([f"photos/{file}"], [[3, 4, 17, 18]])


@pytest.mark.parametrize("way", [way for way in COMPARISONS if way not in ("suffix", "no suffix")])
def test_voc_and_yolo_find_it_by_their_own_names(way: str, tmp_path: Path) -> None:
    name, file = COMPARISONS[way]
    stem = Path(name).stem
    for kind in ("voc", "yolo"):
        root = tmp_path / kind
        write_images(root / "images", [file])
        labels = root / {"voc": "Annotations", "yolo": "Labels"}[kind]
        labels.mkdir()
        if kind == "voc":
            (labels / f"{stem}.xml").write_text(voc_xml(BOX, "renamed.jpg"))
        else:
            (labels / f"{stem}.txt").write_text(yolo_lines(BOX, ["cup"]))
            (root / "classes.txt").write_text("cup\n")
        files, boxes, _ = found_by_custom(root)
        assert (files, boxes) == ([f"images/{file}"], [pytest.approx([3, 4, 17, 18])])


@pytest.mark.parametrize("way", COMPARISONS)
def test_predict_finds_it(way: str, photo: Callable[[str], Path]) -> None:
    name, file = COMPARISONS[way]
    source = open_source(str(photo(file) / name))
    assert isinstance(source, ImageFiles)
    assert [path.name for path in source.paths] == [file]


def test_lists_of_yolo_find_it(tmp_path: Path) -> None:
    write_images(tmp_path / "images", [NFD, "b.png"])
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/Bäume.txt").write_text(yolo_lines(BOX, ["cup"]))
    (tmp_path / "train.txt").write_text(f"./images/{NFC.upper()}\n")
    (tmp_path / "val.txt").write_text("./images/b.png\n")
    (tmp_path / "data.yaml").write_text("train: train.txt\nval: val.txt\nnames: [cup]\n")
    splits = CustomFolder(cache=tmp_path / "cache")(tmp_path)
    content = json.loads(splits.train.annotations.read_text())
    assert [image["file_name"] for image in content["images"]] == [f"images/{NFD}"]
    assert len(content["annotations"]) == 1


def test_lists_of_voc_find_it(tmp_path: Path) -> None:
    write_images(tmp_path / "JPEGImages", [NFD])
    (tmp_path / "Annotations").mkdir()
    xml = (tmp_path / "Annotations" / NFD).with_suffix(".xml")
    xml.write_text(voc_xml(BOX, NFC), encoding="utf-8")
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text(Path(NFC).stem + "\n", encoding="utf-8")
    assert found_by_custom(tmp_path)[:2] == ([f"JPEGImages/{NFD}"], [[3, 4, 17, 18]])


def test_a_name_that_could_mean_several_means_none(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", ["A.png", "a.png", "b.png", "b.webp"])
    names = ("a.PNG", "b.jpg", "a.png", "c.png")
    assert resolve_file_names(names[1:], tmp_path / "photos") == names[1:]
    # a.png is another's, so A.png remains
    assert resolve_file_names(names, tmp_path / "photos") == ("A.png", *names[1:])
    assert resolve_file_names(("a.PNG",), tmp_path / "photos") == ("a.PNG",)
    assert resolve_file_names(("B.png", "b.PNG"), tmp_path / "photos") == ("B.png", "b.PNG")
    with pytest.raises(UserError, match="no such file"):
        open_source(str(tmp_path / "photos/b.jpg"))


def test_masks_elsewhere_are_no_images(tmp_path: Path) -> None:
    write_images(tmp_path / "photos/masks", ["a.png"])
    assert resolve_file_names(("a.jpg",), tmp_path / "photos") == ("a.jpg",)


def test_an_image_that_another_entry_names_is_not_taken(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_images(root, ["a.png", "b.png"])
    content = coco_content({"a.png": BOX, "a.jpg": BOX, "b.png": BOX}, {1: "cup"})
    (root / "labels.json").write_text(json.dumps(content))
    files, _, said = found_by_custom(root)
    assert files == ["a.png", "b.png"]
    assert "image 7 ('a.jpg') is missing, and a.png belongs to another image" in said


def test_another_images_labels_are_not_taken(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_images(root, ["a.png", "A.png"])
    (root / "a.txt").write_text(yolo_lines(BOX, ["cup"]))
    (root / "classes.txt").write_text("cup\n")
    files, boxes, _ = found_by_custom(root)
    assert sorted(files) == ["A.png", "a.png"]
    assert len(boxes) == 1


def test_names_that_are_none_lead_nowhere(tmp_path: Path) -> None:
    names = ("", "/", "..", "a\0b", "\ud800", "x" * 5000, "http://[", "%00", "%zz")
    write_images(tmp_path / "photos", ["a.png"])
    assert resolve_file_names(names, tmp_path / "photos") == names
    assert resolve_file_names(names, tmp_path / "nowhere") == names
    assert all(FileIndex(["photos/a.png"]).named(name) == [] for name in names if name)


def test_images_are_what_pillow_decodes(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 6), (200, 10, 10))
    ours = {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp"}
    ours |= {".avif"} if features.check("avif") else set()
    for suffix in sorted(ours):
        path = tmp_path / f"a{suffix.upper()}"
        image.save(path)
        assert is_image(path.name)
        assert read_image(path).shape == (3, 6, 8)
    assert not image_suffixes() & {".pdf", ".eps", ".h5", ".mpg", ".txt", ".json", ".xml", ".yaml"}


def test_what_predict_skips_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.jxl", "b.JXL", "notes.txt", ".hidden", "README"):
        (tmp_path / name).write_bytes(b"")
    kinds = "4 files (.jxl 2, .txt 1, without suffix 1)"
    with pytest.raises(UserError) as error:
        open_source(str(tmp_path))
    assert kinds in str(error.value)
    write_images(tmp_path, ["c.jfif"])
    with caplog.at_level(logging.INFO):
        assert len(open_source(str(tmp_path))) == 1
    assert f"skipped {kinds}" in caplog.text


def test_pictures_that_conversion_skips_are_counted(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_images(root, ["a.png", "b.png"])
    content = coco_content({"a.png": BOX, "b.png": BOX}, {1: "cup"})
    (root / "labels.json").write_text(json.dumps(content))
    (root / "c.jxl").write_bytes(b"")
    remarks = CustomFolder(cache=tmp_path / "cache")(root).remarks
    assert any("1 files (.jxl 1) are images that the installed Pillow" in r for r in remarks)


REPORTS = {"suffix_ppm": 3, "suffix_jfif": 3, "suffix_case": 3, "unicode_nfd_on_disk": 3}


def sources(name: str, cache: Path) -> dict[str, Source]:
    given = {"train_images": "train", "val_images": "val"} | {
        f"{split}_annotations": f"annotations/instances_{split}.json" for split in ("train", "val")
    }
    if name == "url_file_names":
        given = {"train_images": "images", "val_images": "images"}
        given |= {"train_annotations": "result.json", "val_annotations": "result.json"}
    return {"coco": CocoFolder(**given), "custom": CustomFolder(cache=cache)}


@pytest.mark.parametrize("data", ["coco", "custom"])
@pytest.mark.parametrize("name", [*REPORTS, "url_file_names"])
def test_reported_data_is_found_by_all(name: str, data: str, shared: Path, tmp_path: Path) -> None:
    root = shared / "data/reports" / name
    source = sources(name, tmp_path)[data]
    module = CocoDataModule(root, source, Chain(), Chain(), num_workers=0)
    module.setup("fit")
    datasets = (module.train_dataset, module.eval_dataset)
    seen = [Path(d[i].path) for d in datasets for i in range(len(d)) if len(d[i].targets) == 1]
    assert all(path.is_file() for path in seen)
    if name in REPORTS:
        assert len(seen) == 2 * REPORTS[name]
    else:  # all four in both splits, or divided
        assert len(seen) == (8 if data == "coco" else 4)
        assert len(set(seen)) == 4
    page = inspect_data(name, source(root))
    assert all("the same image as" in problem for problem in page.problems)
    found = sum(int(n) for n in {row[0]: row[1:] for row in page.table}["boxes"])
    assert found == len(seen)
    assert len(open_source(str(root))) == len(list(root.rglob("*.[jp]*"))) - len(
        list(root.rglob("*.json"))
    )
