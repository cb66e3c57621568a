"""A search by Optuna, where its sweeper is installed."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from commands import Command


@pytest.mark.slow
def test_search_has_a_table_of_all_trials(
    command: Command, small: tuple[str, ...], tmp_path: Path
) -> None:
    pytest.importorskip(
        "hydra_plugins.hydra_optuna_sweeper", reason="needs pip install 'codetr[search]'"
    )
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1")
    search += ("hydra.sweeper.sampler.seed=1", "hydra.sweeper.direction=maximize")
    given = [o for o in small if not o.startswith("optimizer.lr")]
    words = (*given, "debug=fast", "name=k", *search, "optimizer.lr=tag(log, interval(1e-4, 1e-2))")
    for _ in range(2):  # the second time nothing is left to do
        done = command("train.py", "-m", *words)
        assert done.returncode == 0, done.stderr[-3000:]
    with (tmp_path / "runs/sweeps/k/sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["overrides"] for row in rows}) == 2
    assert all(row["overrides"].startswith("lr=") for row in rows)
    assert (tmp_path / "runs/sweeps/k/optimization_results.yaml").is_file()
