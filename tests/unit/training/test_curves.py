from pathlib import Path

import pytest
from PIL import Image

from codetr.training.callbacks.curves import plot_curves, read_curves

ROWS = [
    {"step": "0", "epoch": "0", "loss": "4", "loss_a": "3", "AP": ""},
    {"step": "3", "epoch": "0", "loss": "3", "loss_a": "1", "AP": "0.5"},
]


def test_steps_become_epochs() -> None:
    curves = read_curves(ROWS, steps_per_epoch=4)
    assert curves == {
        "loss": [(0.25, 4.0), (1.0, 3.0)],
        "loss_a": [(0.25, 3.0), (1.0, 1.0)],
        "AP": [(1.0, 0.5)],
    }


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1]])
def test_picture_is_written(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    plot_curves(read_curves(rows, 4), tmp_path / "new" / "curves.png")
    with Image.open(tmp_path / "new" / "curves.png") as picture:
        assert picture.width > 1000
