"""Annotations name images within data.root, unless the user allows more."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from codetr.data.loading import load_split
from codetr.data.sources import CocoFolder
from codetr.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with images in two folders, beside one that is none of its business."""
    for name in ("root/train/a.png", "root/other/b.png", "secret.png", "root-too/c.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(path)
    (tmp_path / "root/link").symlink_to(tmp_path)
    return tmp_path / "root"


def named(root: Path, name: str, **options: bool) -> tuple[str, ...]:
    """The file names that are read where the annotations say ``name``."""
    content = {
        "images": [{"id": 1, "file_name": name, "width": 40, "height": 30}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (root / "a.json").write_text(json.dumps(content))
    paths = {"train_annotations": "a.json", "train_images": "train"}
    splits = CocoFolder(**paths, **options)(root)  # type: ignore[arg-type]
    return load_split(splits, "train", "auto", root / "derived").file_names


OUTSIDE = ("../../secret.png", "x/../../../secret.png", "../../root-too/c.png", "ABSOLUTE")


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_out_are_refused(root: Path, name: str) -> None:
    name = str(root.parent / "secret.png") if name == "ABSOLUTE" else name
    with pytest.raises(UserError) as caught:
        named(root, name)
    text = str(caught.value)
    assert re.search(r"a\.json: names the image .* outside of data\.root=", text)
    assert "data.source.outside=true" in text
    assert "\n" not in text


@pytest.mark.parametrize("name", OUTSIDE)
def test_the_user_may_allow_them(root: Path, name: str) -> None:
    name = str(root.parent / "secret.png") if name == "ABSOLUTE" else name
    assert named(root, name, outside=True) == (name,)


@pytest.mark.parametrize("name", ["a.png", "../other/b.png", "../train/../other/b.png", "a..b.png"])
def test_names_within_the_root_are_not(root: Path, name: str) -> None:
    Image.new("RGB", (40, 30)).save(root / "train/a..b.png")
    assert named(root, name) == (name,)


@pytest.mark.parametrize("where", [".", "train/..", ""])
@pytest.mark.parametrize("name", ["../other/b.png", "ABSOLUTE"])
def test_the_root_may_be_relative(
    root: Path, where: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = str(root / "other/b.png") if name == "ABSOLUTE" else name
    monkeypatch.chdir(root)
    assert named(Path(where), name) == (name,)
    with pytest.raises(UserError, match=r"outside of data\.root="):
        named(Path(where), "../../root-too/c.png")
    monkeypatch.chdir(root.parent)
    assert named(Path("root"), name) == (name,)
    with pytest.raises(UserError, match=r"outside of data\.root="):
        named(Path("root"), str(root.parent / "secret.png"))


def test_links_are_followed(root: Path) -> None:
    """Image folders are often links: who makes a folder decides what is in it."""
    assert named(root, "../link/secret.png") == ("../link/secret.png",)


def test_an_absolute_name_of_the_root_itself(root: Path) -> None:
    name = str(root / "other/b.png")
    assert named(root, name) == (name,)


def test_a_name_that_no_system_has(root: Path) -> None:
    assert named(root, "x" * 5000 + ".png") == ("x" * 5000 + ".png",)
