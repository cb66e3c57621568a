"""The exit status of scripts/parity.py, and what it says."""

import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tools.parity.check import check

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the command on folders and returns its exit status."""

    def status(*arguments: str | Path) -> int:
        monkeypatch.setattr(sys, "argv", ["parity.py", *map(str, arguments)])
        found: int = runpy.run_path(str(ROOT / "scripts" / "parity.py"))["main"]()
        return found

    return status


def changed(folder: Path, root: Path, name: str, array: np.ndarray) -> tuple[Path, str]:
    """A copy of ``folder`` in ``root`` with ``array`` called ``name`` in its first case, and the
    whole name of it.
    """
    copy = Path(shutil.copytree(folder, root / folder.name, copy_function=shutil.copyfile))
    arrays = dict(np.load(copy / "io.npz"))
    whole = f"{next(iter(arrays)).split('/')[0]}/{name}"
    np.savez(copy / "io.npz", **{**arrays, whole: array})
    return copy, whole


def test_an_array_that_is_not_compared_is_a_failure(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(GOLDEN / "soft_nms") == 0
    assert "all quantities hold" in capsys.readouterr().out
    folder, name = changed(GOLDEN / "soft_nms", tmp_path, "wisdom", np.zeros(3))
    assert run(GOLDEN / "dn_query", folder) == 1
    said = capsys.readouterr().out
    assert f"1 arrays not compared: {name}" in said
    assert "some recorded arrays are not compared" in said
    assert "some quantities do not hold" not in said


def test_an_array_that_differs_is_a_failure(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = changed(GOLDEN / "dn_query", tmp_path, "bbox_logit", np.zeros(1))
    assert run(folder) == 1
    said = capsys.readouterr().out
    assert "some quantities do not hold" in said
    assert "not compared" not in said


@pytest.mark.parametrize("name", ["msda", "soft_nms", "dn_query", "mask_pipeline"])
def test_parts_alone_know_their_inputs(name: str, tmp_path: Path) -> None:
    """And only these: anything else that is recorded is compared or named."""
    assert check(GOLDEN / name).ok
    folder, unknown = changed(GOLDEN / name, tmp_path, "labels_of_others", np.zeros(1))
    report = check(folder)
    assert report.untouched == (unknown,)
    assert all(row.ok for row in report.rows)
    assert not report.ok
