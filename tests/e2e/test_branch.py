"""Branches of a trained checkpoint."""

import json
from pathlib import Path

from commands import Command


def test_auxiliary_branch_is_evaluated(
    command: Command, small: tuple[str, ...], tmp_path: Path
) -> None:
    done = command("train.py", *small, "debug=fast", "callbacks=default", "name=a")
    assert done.returncode == 0, done.stderr[-2000:]
    told = (f"checkpoint={tmp_path}/runs/a/best.ckpt", "evaluation.branch=atss")
    done = command("eval.py", *told, "trainer=cpu", "name=atss")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Average Precision" in done.stdout
    found = json.loads((tmp_path / "runs/atss/predictions.json").read_text())
    assert len(found) == 2 * 100, "the head's own limit, not the main branch's"
