from pathlib import Path

import pytest
from custom_folders import CELLS, voc_xml, write_images, write_voc

from codetr.data.formats import voc
from codetr.data.formats.content import FolderContent, LabelledImage
from codetr.data.formats.tree import list_files
from codetr.errors import UserError

SETS = {"train": ["a", "b"], "val": ["c", "d"], "trainval": ["a", "b", "c", "d"], "test": ["e"]}


def counts(found: FolderContent) -> dict[str, int]:
    return {name: len(split.images) for name, split in found.splits.items()}


def read(root: Path) -> FolderContent:
    return voc.read(list_files(root))


def test_reads_boxes_classes_and_image_sets(tmp_path: Path) -> None:
    found = read(write_voc(tmp_path, CELLS, SETS))
    assert found.categories == {1: "cup", 2: "öl 油"}
    assert counts(found) == {
        "train": 2,
        "val": 2,
        "test": 1,
    }
    first = found.splits["train"].images[0]
    assert (first.file, first.source) == ("JPEGImages/a.png", "Annotations/a.xml")
    assert [(found.categories[b.category], b.xyxy) for b in first.boxes] == CELLS["a"]
    assert first.declared_wh == (40, 30)
    assert not found.problems


def test_lists_are_read_without_comparing_their_images_in_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[object] = []
    monkeypatch.setattr(LabelledImage, "__eq__", lambda *both: bool(compared.append(both)))
    found = read(write_voc(tmp_path, CELLS, SETS))
    assert counts(found)["train"] == 2
    assert not compared


def test_coordinates_are_edges_where_a_zero_occurs(tmp_path: Path) -> None:
    write_voc(tmp_path, CELLS)
    path = tmp_path / "Annotations/b.xml"
    path.write_text(voc_xml([("cup", (-1, 4, 20, 22))]))  # xmin 0 in the file
    found = read(tmp_path)
    boxes = {image.file: image.boxes for image in found.splits["unsplit"].images}
    assert boxes["JPEGImages/b.png"][0].xyxy == (0, 5, 20, 22)
    assert boxes["JPEGImages/a.png"][0].xyxy == (1, 1, 10, 12)
    assert any("from 0" in remark for remark in found.remarks)


def test_trainval_alone_is_not_divided(tmp_path: Path) -> None:
    found = read(write_voc(tmp_path, CELLS, {"trainval": ["a", "b", "c"], "test": ["d"]}))
    assert counts(found) == {
        "unsplit": 3,
        "test": 1,
    }
    assert "1 annotated images are in no list: skipped" in found.remarks


def test_class_wise_lists_are_not_splits_and_unknown_names_are_problems(tmp_path: Path) -> None:
    sets = {"train": ["a", "b.png", "gone"], "val": ["d 1"], "cup_train": ["a  1", "b -1"]}
    found = read(write_voc(tmp_path, CELLS, sets))
    assert counts(found) == {
        "train": 2,
        "val": 1,
    }
    assert [str(p) for p in found.problems] == [
        "ImageSets/Main/train.txt: 'gone' has no usable annotation; it was skipped"
    ]


def test_xml_beside_images_in_folders_of_splits(tmp_path: Path) -> None:
    for split, name in (("train", "a"), ("valid", "b")):
        write_images(tmp_path / split, [f"{name}.jpg", "unlabelled.jpg"])
        (tmp_path / split / f"{name}.xml").write_text(voc_xml(CELLS[name], f"{name}.jpg"))
    found = read(tmp_path)
    assert {name: [i.file for i in split.images] for name, split in found.splits.items()} == {
        "train": ["train/a.jpg"],
        "val": ["valid/b.jpg"],
    }
    assert any("2 images without annotation" in remark for remark in found.remarks)


def test_image_is_found_by_its_name_in_the_file(tmp_path: Path) -> None:
    write_images(tmp_path / "pictures", ["first.png"])
    (tmp_path / "Annotations").mkdir()
    text = voc_xml(CELLS["a"], "C:\\photos\\first.png")
    (tmp_path / "Annotations/0001.xml").write_text(text)
    assert read(tmp_path).splits["unsplit"].images[0].file == "pictures/first.png"


def test_of_several_endings_the_named_one_is_the_image(tmp_path: Path) -> None:
    write_images(tmp_path / "JPEGImages", ["a.jpg", "a.png", "b.png", "b.jpg", "c.webp"])
    (tmp_path / "Annotations").mkdir()
    for stem, filename in (("a", "C:\\x\\a.png"), ("b", "renamed.jpg"), ("c", "c.jpg")):
        (tmp_path / f"Annotations/{stem}.xml").write_text(voc_xml(CELLS["a"], filename))
    files = [image.file for image in read(tmp_path).splits["unsplit"].images]
    assert files == [f"JPEGImages/{name}" for name in ("a.png", "b.jpg", "c.webp")]


def test_difficult_objects_are_ignored(tmp_path: Path) -> None:
    write_voc(tmp_path, CELLS)
    (tmp_path / "Annotations/b.xml").write_text(voc_xml(CELLS["b"], difficult=1))
    found = read(tmp_path)
    assert [b.ignored for i in found.splits["unsplit"].images for b in i.boxes].count(True) == 1
    assert any("1 difficult" in remark for remark in found.remarks)


def test_parts_of_an_object_are_no_boxes_of_it(tmp_path: Path) -> None:
    write_voc(tmp_path, {"a": CELLS["b"]})
    path = tmp_path / "Annotations/a.xml"
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    path.write_text(path.read_text().replace("<object>", f"<object>{part}"))
    (image,) = read(tmp_path).splits["unsplit"].images
    assert [b.xyxy for b in image.boxes] == [(3, 4, 20, 22)]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not valid XML"),
        (b"<annotation><object>", "not valid XML"),
        (b"<a/>", "not <annotation>"),
        (b"<" + b"<".join([b"a>"] * 100_000), "nested"),
        (b'<?xml version="1.0" encoding="gb2312"?><annotation/>', "UTF-8"),
        (b'<?xml version="1.0" encoding="no-such"?><annotation/>', "not valid XML"),
        (b"\xff\xfe\x00", "not valid XML"),
        (b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>', "document type"),
    ],
)
def test_broken_files_are_left_out_with_a_reason(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    write_voc(tmp_path, CELLS)
    (tmp_path / "Annotations/b.xml").write_bytes(content)
    found = read(tmp_path)
    assert len(found.splits["unsplit"].images) == 4
    (problem,) = found.problems
    assert problem.file == "Annotations/b.xml"
    assert reason in problem.text


def test_an_entity_bomb_does_not_grow() -> None:
    lol = "".join(
        f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' if i else '<!ENTITY l0 "lol">' for i in range(20)
    )
    with pytest.raises(UserError, match="document type"):
        voc.parse_xml(f"<!DOCTYPE x [{lol}]><annotation>&l19;</annotation>".encode())
