"""H-Deformable-DETR with teachers against recorded numbers of the official code."""

import json
import shutil
from pathlib import Path

import pytest

from tools.parity.check import check
from tools.parity.recorded import Recorded
from tools.parity.teacher_files import check_loader


@pytest.fixture
def recorded(shared: Path) -> Path:
    folder = shared / "golden" / "teach_detr_h_deformable"
    if not folder.is_dir():
        pytest.skip("no folder of numbers of Teach-DETR")
    return folder


@pytest.mark.golden
@pytest.mark.slow
def test_ours_equal_the_recorded_numbers(recorded: Path) -> None:
    report = check(recorded)
    assert not [row for row in report.rows if not row.ok]
    assert report.ok
    assert not report.untouched


@pytest.mark.golden
def test_teachers_files_are_read_merged_and_moved_as_officially(recorded: Path) -> None:
    rows = check_loader(Recorded.load(recorded))
    assert len(rows) > 60
    assert not [row for row in rows if not row.ok]


@pytest.mark.golden
def test_another_box_of_a_teacher_is_noticed(recorded: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(recorded, tmp_path / "copy", copy_function=shutil.copyfile))
    path = folder / "teacher_retinanet.json"
    content = json.loads(path.read_text())
    for result in content["101"]:
        result["bbox"][0] += 1
    path.write_text(json.dumps(content))
    wrong = [r.quantity for r in check_loader(Recorded.load(folder)) if not r.ok]
    assert "plain/101/ext_boxes" in wrong
    assert "plain/102/ext_boxes" not in wrong
