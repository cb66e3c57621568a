"""Data of public bug reports, through the commands of a user: looked at, trained on, evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import SMALL, Command

CASES = {
    # data set: boxes of train and val that must be found, further settings
    "bbox_as_text": (3, 3, ()),
    "exif_stored_orientation": (3, 3, ()),
    "ids_as_float_or_text/float": (3, 3, ()),
    "ids_as_float_or_text/float_category_only": (3, 3, ()),
    "ids_as_float_or_text/numpytext": (3, 3, ()),
    "ids_as_float_or_text/text": (3, 3, ()),
    "iscrowd_as_text": (4, 4, ()),
    "polygons_only": (3, 3, ()),
    "roboflow_train_test": (10, 4, ("data.source.val=test",)),
    "root_named_like_class": (4, 4, ()),
    "suffix_case": (3, 3, ()),
    "suffix_jfif": (3, 3, ()),
    "suffix_ppm": (3, 3, ()),
    "unicode_nfd_on_disk": (3, 3, ()),
    "url_file_names": (3, 1, ()),
}
REFUSED = {
    "panoptic_by_mistake": "panoptic segments",
}
QUICK = ("exif_stored_orientation", "roboflow_train_test")
"""Those that are trained on in every run of the tests."""
MODEL = (
    *[option for option in SMALL if not option.startswith("data.source")],
    "model=co_dino_tiny",
    "data.num_workers=0",
    "augmentation=flip",
)


def settings(name: str, shared: Path) -> tuple[str, ...]:
    further = CASES[name][2] if name in CASES else ()
    return ("data=custom", f"data.root={shared / 'data/reports' / name}", *further)


@pytest.mark.parametrize("name", CASES)
def test_is_looked_at(name: str, command: Command, shared: Path) -> None:
    done = command("scripts/inspect_data.py", *settings(name, shared), "out=a.html")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    (counts,) = [row[1:] for row in rows if row[:1] == ["boxes"] and row[1:2] != ["per"]]
    assert [int(n) for n in counts] == list(CASES[name][:2])


@pytest.mark.parametrize("script", ["scripts/inspect_data.py", "train.py"])
@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_in_one_line(name: str, script: str, command: Command, shared: Path) -> None:
    done = command(script, *settings(name, shared))
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert REFUSED[name] in errors[0]
    assert "annotate some images" not in errors[0]
    assert "Traceback" not in done.stderr


def train_and_evaluate(name: str, command: Command, tmp_path: Path, shared: Path) -> None:
    given = settings(name, shared)
    done = command("train.py", *given, *MODEL, "debug=fast", "name=a")
    assert done.returncode == 0, done.stderr[-3000:]
    checkpoint = f"checkpoint={tmp_path / 'runs/a/best.ckpt'}"
    done = command("eval.py", checkpoint, "trainer=cpu", "name=b")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "AP" in json.loads((tmp_path / "runs/b/metrics.json").read_text())


@pytest.mark.parametrize("name", QUICK)
def test_is_trained_on_and_evaluated(
    name: str, command: Command, tmp_path: Path, shared: Path
) -> None:
    train_and_evaluate(name, command, tmp_path, shared)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in QUICK])
def test_all_others_are_trained_on_and_evaluated(
    name: str, command: Command, tmp_path: Path, shared: Path
) -> None:
    train_and_evaluate(name, command, tmp_path, shared)
