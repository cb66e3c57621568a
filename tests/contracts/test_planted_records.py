"""Nothing that is planted in a checkpoint's record runs: at any place, by any way to open it."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from openers import (
    entry_eval,
    entry_export,
    entry_from_pretrained,
    entry_load,
    entry_predict,
    entry_train,
    opened,
    watched,
)
from planted import NODES, PLACE, TEXTS, File, places, planted
from tiny_checkpoint import save_tiny

import codetr
from codetr.errors import UserError

BUILT = {"model", "data", "evaluation", "augmentation"}
"""Groups of a record that the entries build from."""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> File:
    """A checkpoint with a whole record of a run with auxiliary heads."""
    folder = tmp_path_factory.mktemp("run")
    overrides = ("data=coco", "data.num_workers=0", f"data.root={folder}")
    return File(save_tiny(folder / "model.safetensors", *overrides))


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """See ``watched``."""
    with watched(tmp_path, monkeypatch) as path:
        yield path


ENTRIES = (entry_load, entry_from_pretrained, entry_predict, entry_export, entry_eval, entry_train)


def parts(file: File) -> list[tuple[PLACE, Any]]:
    """What of a record could be resolved or built: all but the lists of classes."""
    return [(p, v) for p, v in places(file.record) if p[:1] in (("config",), ("preprocessing",))]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.__name__)
def test_an_interpolation_anywhere_is_refused(
    file: File, tmp_path: Path, canary: Path, entry: Callable[[Path], None]
) -> None:
    seen = 0
    for (place, value), text in zip(parts(file), itertools.cycle(TEXTS), strict=False):
        if isinstance(value, str) or (entry is entry_load and len(place) > 1):
            path = file.write(tmp_path / "model.safetensors", planted(file.record, place, text))
            assert "is never resolved" in str(opened(entry, path)), place
            assert not canary.exists(), place
            seen += 1
    assert seen > 100


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.__name__)
def test_a_foreign_class_anywhere_is_refused_or_ignored(
    file: File, tmp_path: Path, canary: Path, entry: Callable[[Path], None]
) -> None:
    """Each alone where objects are built, and all together where none are."""
    refused, ignored = 0, file.record
    for (place, value), node in zip(parts(file), itertools.cycle(NODES), strict=False):
        if not isinstance(value, dict) or "_target_" not in value:
            continue
        if place[0] == "config" and place[1] not in BUILT:
            ignored = planted(ignored, place[:3], node)
            continue
        path = file.write(tmp_path / "model.safetensors", planted(file.record, place, node))
        said = opened(entry, path)
        refused += "asks to build" in str(said)
        assert not canary.exists(), place
    opened(entry, file.write(tmp_path / "model.safetensors", ignored))
    assert not canary.exists()
    assert refused >= (0 if entry is entry_train else 5)
    assert ignored is not file.record


def test_what_is_planted_would_run(file: File, tmp_path: Path, canary: Path) -> None:
    """Where the user trusts the file, classes of its choice do."""
    place = ("config", "evaluation", "postprocess")
    path = file.write(tmp_path / "model.safetensors", planted(file.record, place, NODES[0]))
    with pytest.raises(UserError, match="no Postprocess"):
        codetr.load(path, device="cpu", trust=True)
    assert canary.exists()
    canary.unlink()
    OmegaConf.to_container(OmegaConf.create([TEXTS[0]]), resolve=True)
    assert canary.exists()


def test_names_of_classes_are_texts(file: File, tmp_path: Path, canary: Path) -> None:
    """Whatever they are: nobody resolves them."""
    names = [TEXTS[0], TEXTS[1], "[bold]${data.root}"]
    path = file.write(tmp_path / "model.safetensors", {**file.record, "class_names": names})
    assert codetr.load(path, device="cpu").record.classes.names == tuple(names)
    assert not canary.exists()


@pytest.mark.parametrize("step", [pytest.param(5, marks=pytest.mark.slow), 59])
def test_a_malformed_record_is_one_line(file: File, tmp_path: Path, step: int) -> None:
    """Whatever stands anywhere; every ``step``-th place."""
    wrong: tuple[Any, ...] = (None, -1, "text", [], {}, True, [[1]], 1e400, {"_target_": "torch"})
    chosen = list(itertools.product(places(file.record), wrong))[::step]
    for (place, _), value in chosen:
        path = file.write(tmp_path / "model.safetensors", planted(file.record, place, value))
        opened(entry_load, path)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "[" * 99 + "]" * 99, "9" * 9999]
)
def test_a_record_that_is_no_record_is_one_line(file: File, tmp_path: Path, text: str) -> None:
    assert opened(entry_load, file.write(tmp_path / "model.safetensors", text)) is not None
