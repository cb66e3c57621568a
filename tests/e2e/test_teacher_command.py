"""A trained model teaches another: its boxes are written, and read by the next run."""

import json
from pathlib import Path

from commands import Command

from codetr.checkpoints.files import read_detector_file


def test_a_trained_model_teaches_another(
    command: Command, small: tuple[str, ...], tmp_path: Path
) -> None:
    done = command("train.py", *small, "debug=fast", "name=a")
    assert done.returncode == 0, done.stderr
    boxes = tmp_path / "teacher.json"
    chosen = (f"checkpoint={tmp_path}/runs/a/best.ckpt", f"output={boxes}", "trainer=cpu")
    done = command("scripts/teacher_boxes.py", *chosen, "top_k=5", "min_score=0")
    assert done.returncode == 0, done.stderr
    results = json.loads(boxes.read_text())
    assert {r["image_id"] for r in results} == {1, 2, 3, 4}
    assert len(results) == 4 * 5
    record = read_detector_file(tmp_path / "runs/a/best.ckpt").record
    assert {r["category_id"] for r in results} <= set(record.classes.category_ids)

    taught = (*small, "debug=fast", "name=b", "scheme=[one_to_one,hybrid,group,teacher]")
    done = command("train.py", *taught, f"data.teachers=[{boxes}]")
    assert done.returncode == 0, done.stderr
    columns = (tmp_path / "runs/b/metrics.csv").read_text().splitlines()[0]
    assert "loss/teacher/0/layer1/cls" in columns

    done = command("train.py", *taught, "name=c")
    assert done.returncode == 2
    assert "data.teachers" in done.stderr
