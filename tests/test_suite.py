"""The suite itself: it passes in a clone of any name, and draws the same examples in every run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("codetr", "conf", "tests/contracts", "tests/conftest.py", "pyproject.toml")
WHAT = ("tests/contracts/test_synchronisation.py", "-k", "hybrid or pretended")


def copied(folder: Path) -> Path:
    """What ``WHAT`` needs of a clone, in ``folder``."""
    for part in PARTS:
        target = folder / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, target)
        else:
            shutil.copy(ROOT / part, target)
    return folder


def test_the_suite_passes_in_a_folder_of_any_name(tmp_path: Path) -> None:
    """Those tests that look at paths; a clone is called ``codetr``, as the package in it."""
    clone = copied(tmp_path / "a b" / "codetr")
    command = [sys.executable, "-m", "pytest", *WHAT, "-p", "no:cacheprovider", "-p", "no:xdist"]
    environment = {**os.environ, "PYTHONPATH": str(clone), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(
        command, cwd=clone, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not settings.default.derandomize, reason="a random search was asked for")
def test_examples_are_the_same_in_every_run() -> None:
    assert _drawn() == _drawn()


def _drawn() -> list[int]:
    values: list[int] = []

    @settings(max_examples=5)
    @given(st.integers())
    def draw(value: int) -> None:
        values.append(value)

    draw()
    return values
