"""A sweep over a list of option files."""

import csv
from pathlib import Path

import pytest
from commands import Command


@pytest.mark.slow
def test_sweep_over_auxiliary_heads_survives_a_failing_job(
    command: Command, small: tuple[str, ...], tmp_path: Path
) -> None:
    rule = "optimizer.rules.sampling_offsets={pattern: heads.atss}"  # nothing there without ATSS
    done = command("train.py", "-m", *small, "debug=fast", "name=k", "aux_heads=[],[atss]", rule)
    assert done.returncode == 1
    assert "matches no parameter" in done.stderr
    folder = tmp_path / "runs/sweeps/k"
    with (folder / "sweep.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["overrides"] for row in table] == ["aux_heads=[]", "aux_heads=[atss]"]
    assert table[0]["AP"] == "failed"
    assert 0 <= float(table[1]["AP"]) <= 1
    assert "loss/collaborative/atss" in (folder / "1/metrics.csv").read_text()
