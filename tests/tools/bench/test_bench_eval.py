import runpy
import sys
from pathlib import Path

import pytest
import torch

from tools.bench.detections import make_scene
from tools.bench.report import read_json

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "bench.py"


def test_made_up_detections_are_as_many_and_as_sorted_as_a_detectors() -> None:
    scene = make_scene(5, 60, 80)
    assert list(scene.found) == [1, 2, 3, 4, 5]
    for found in scene.found.values():
        assert len(found) == 60
        assert (found.scores.diff() <= 0).all()
        assert (found.boxes_xyxy_px[:, 2:] > found.boxes_xyxy_px[:, :2]).all()
        assert 0 <= found.labels.min() <= found.labels.max() < 80
    again = make_scene(5, 60, 80)
    assert again.truth == scene.truth
    assert torch.equal(again.found[3].boxes_xyxy_px, scene.found[3].boxes_xyxy_px)


def test_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = ["--images=8", "--baseline-images=4", "--detections=40", "--no-memory"]
    path = tmp_path / "eval.json"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "eval", *given, "--json", str(path)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    report = read_json(path)
    (table,) = report.tables
    assert report.benchmark == "eval"
    assert table.rows["ours, 4 images"][2] == table.rows["pycocotools, 4 images"][2]
    assert 0.1 < float(table.rows["ours, 8 images"][2]) < 0.9
    assert float(table.notes[0].rsplit(" ", 1)[1]) < 1e-12
