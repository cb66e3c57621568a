import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from warm import TIMEOUT_S

from codetr.data import scenes
from codetr.data.annotations import load_annotations
from codetr.data.check import check_dataset
from codetr.data.scenes import SceneStyle, render_scene
from codetr.data.shapes import SHAPES
from codetr.data.synthetic import SyntheticScenes
from codetr.errors import UserError

SMALL = SyntheticScenes(size=64, num_train=12, num_val=5)


def _bytes(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_same_parameters_give_the_same_bytes(tmp_path: Path) -> None:
    SMALL(tmp_path / "a")
    SMALL(tmp_path / "b")
    first = _bytes(tmp_path / "a")
    assert len(first) == 12 + 5 + 2
    assert first == _bytes(tmp_path / "b")
    assert len(set(first.values())) == len(first)  # validation scenes are others


def test_other_parameters_give_another_folder(tmp_path: Path) -> None:
    others = [
        SMALL,
        replace(SMALL, seed=1),
        replace(SMALL, num_train=13),
        replace(SMALL, style=SceneStyle(objects=(2, 3))),
    ]
    assert len({other.folder(tmp_path) for other in others}) == len(others)
    splits = replace(SMALL, seed=1)(tmp_path), SMALL(tmp_path)
    images = [(s.train.images / "000000.jpg").read_bytes() for s in splits]
    assert images[0] != images[1]


def test_renders_once_and_leaves_nothing_else(tmp_path: Path) -> None:
    splits = SMALL(tmp_path)
    before = splits.train.annotations.stat().st_mtime_ns
    SMALL(tmp_path)
    assert splits.train.annotations.stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == [SMALL.folder(tmp_path).name]


def test_two_at_once_are_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    barrier = threading.Barrier(2)
    rename = Path.rename

    def meet(path: Path, target: Path) -> Path:
        barrier.wait(timeout=TIMEOUT_S)
        return rename(path, target)

    monkeypatch.setattr("codetr.data.synthetic.Progress", _NoProgress)
    monkeypatch.setattr(Path, "rename", meet)
    errors: list[BaseException] = []

    def render() -> None:
        try:
            SMALL(tmp_path)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=render) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert [path.name for path in tmp_path.iterdir()] == [SMALL.folder(tmp_path).name]
    assert len(_bytes(tmp_path)) == 12 + 5 + 2


class _NoProgress:
    """rich shows one live display at a time; two processes have one each, two threads do not."""

    def __init__(self, transient: bool) -> None:
        pass

    def __enter__(self) -> "_NoProgress":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def add_task(self, *_: object, total: int) -> int:
        return 0

    def advance(self, _: int) -> None:
        pass


def test_a_failure_leaves_no_half_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("codetr.data.synthetic.render_scene", fail)
    with pytest.raises(OSError, match="disk full"):
        SMALL(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_is_a_valid_data_set(tmp_path: Path) -> None:
    splits = SMALL(tmp_path)
    parts = [(load_annotations(s.annotations), s.images) for s in (splits.train, splits.val)]
    report = check_dataset(parts[0], parts[1])
    assert all(s.degenerate.count == s.outside.count == 0 for s in report.splits)
    assert all(s.images_without_boxes == 0 for s in report.splits)
    assert parts[0][0].classes.names == tuple(SHAPES)
    for image in json.loads(splits.train.annotations.read_text())["images"]:
        with Image.open(splits.train.images / image["file_name"]) as file:
            assert file.size == (image["width"], image["height"])
            assert min(file.size) == 64


def test_boxes_bound_the_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the pixels that each accepted shape covers, caught where it is painted."""
    masks: list[np.ndarray] = []
    monkeypatch.setattr(scenes, "_paint", lambda rng, canvas, mask, name: masks.append(mask.copy()))
    labels = set()
    for index in range(40):
        masks.clear()
        rng = np.random.default_rng(index)
        _, objects = render_scene(rng, 64, 80, SceneStyle())
        assert 1 <= len(objects) == len(masks) <= 8
        for i, (item, mask) in enumerate(zip(objects, masks, strict=True)):
            labels.add(item.label)
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            bound = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            assert np.abs(np.subtract(item.box, bound)).max() < 1.5
            assert item.area == pytest.approx(mask.sum(), rel=1e-5)
            visible = mask * np.prod([1 - m for m in masks[i + 1 :]], axis=0)
            assert visible.sum() >= 0.25 * mask.sum() - 1e-3
    assert labels == set(range(len(SHAPES)))


def test_bad_parameters() -> None:
    with pytest.raises(UserError, match="size=8"):
        SyntheticScenes(size=8)


def test_masks_are_what_is_visible(tmp_path: Path) -> None:
    """No pixel is of two objects, a mask lies in its box, and what nothing was painted over has the
    whole of its area.
    """
    splits = SMALL(tmp_path)
    annotations = load_annotations(splits.train.annotations, segmentations=True)
    whole = 0
    for index in range(len(annotations)):
        targets = annotations.targets(index)
        masks = targets.masks
        assert masks is not None
        assert masks.sum(dim=0).amax() <= 1
        for mask, (x0, y0, x1, y1) in zip(masks, targets.boxes.tolist(), strict=True):
            assert mask.any()
            rows, columns = mask.nonzero().T
            assert columns.min() >= np.floor(x0)
            assert columns.max() < np.ceil(x1)
            assert rows.min() >= np.floor(y0)
            assert rows.max() < np.ceil(y1)
        last = len(targets) - 1  # nothing was painted over the last
        if last >= 0:
            area = float(annotations.area[annotations.offsets[index + 1] - 1])
            assert int(masks[last].sum()) == pytest.approx(area, abs=0.03 * area + 6)
            whole += 1
    assert whole > 5
