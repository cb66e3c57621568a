"""Our numbers against recorded ones of the official code, from the compact copies kept here."""

import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from codetr.errors import UserError
from tools.parity import rules
from tools.parity.check import check, markdown
from tools.parity.extract import extract
from tools.parity.recorded import Recorded
from tools.parity.table import Tolerance, compare

HERE = Path(__file__).parent
FOLDERS = sorted(path.parent for path in HERE.rglob("io.npz"))
SINGLE = HERE / "co_deformable_detr_r50_single"


@pytest.mark.golden
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.relative_to(HERE).as_posix())
def test_ours_equal_the_recorded_numbers(folder: Path) -> None:
    report = check(folder)
    assert not [row for row in report.rows if not row.ok]
    assert report.ok
    assert not report.untouched


@pytest.mark.golden
def test_float32_within_its_tolerances() -> None:
    report = check(SINGLE, "float32")
    assert not [row for row in report.rows if not row.ok]
    assert not report.untouched  # what float32 cannot reproduce is left out by a rule


@pytest.mark.golden
def test_test_pipeline(shared: Path) -> None:
    report = check(shared / "golden" / "test_pipeline")
    assert not [row for row in report.rows if not row.ok]
    assert report.ok


@pytest.mark.golden
def test_another_weight_is_noticed(tmp_path: Path) -> None:
    folder = shutil.copytree(HERE / "dn_query", tmp_path / "dn_query")
    with np.load(folder / "io.npz") as stored:
        arrays = {name: stored[name].copy() for name in stored.files}
    arrays["case0/bbox_logit"][0, 0, 0] += 1e-8
    np.savez(folder / "io.npz", **arrays)
    report = check(folder)
    assert [row.quantity for row in report.rows if not row.ok] == ["case0/bbox_logit"]
    assert not report.ok
    assert "| case0/bbox_logit | 1.0e-08 |" in markdown([report])


def test_compare_sees_shape_size_and_what_is_not_finite() -> None:
    tolerance = Tolerance(absolute=0.1)
    assert compare("x", [1.0, 2.05], [1.0, 2.0], tolerance).ok
    assert not compare("x", [1.0, 2.2], [1.0, 2.0], tolerance).ok
    assert not compare("x", [1.0], [1.0, 2.0], tolerance).ok
    assert not compare("x", [np.nan], [1.0], tolerance).ok
    assert not compare("x", [np.inf], [1.0], tolerance).ok
    assert not compare("x", [1.0], [np.inf], tolerance).ok
    assert not compare("x", [-np.inf], [np.inf], tolerance).ok
    assert compare("x", [np.inf, np.nan], [np.inf, np.nan], tolerance).ok
    assert compare("x", torch.tensor([3.0]), np.array([2.0])).relative == 0.5


def test_rules_equal_the_reference(shared: Path) -> None:
    reference = runpy.run_path(str(shared / "golden" / "weights.py"))
    recorded = Recorded.load(shared / "golden" / "co_dino_r50")
    for key, shape in list(recorded.shapes.items())[::7]:
        ours, theirs = rules.make_tensor(key, shape), reference["make_tensor"](key, shape)
        assert (ours is None) == (theirs is None)
        assert ours is None or np.array_equal(ours, theirs)
    arguments = ([3, 4], [(70, 50), (33, 90)], [5, 0], 7)
    for mine, other in zip(
        rules.make_inputs(*arguments), reference["make_inputs"](*arguments), strict=True
    ):
        assert all(np.array_equal(a, b) for a, b in zip(mine, other, strict=True))


def test_extract_is_small_and_still_holds(shared: Path, tmp_path: Path) -> None:
    message = extract(shared / "golden" / "msda", tmp_path)
    assert "MB" in message
    assert sum(p.stat().st_size for p in (tmp_path / "msda").iterdir()) < 1e6
    assert check(tmp_path / "msda").ok


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no info\.json"):
        check(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        check(tmp_path / "nothing")
