"""A run goes on with another number of processes."""

import csv
from dataclasses import replace

import pytest
import torch
from runs import RANKS, Place, kept_step, kill, wait_until

STEPS = 6
"""Of two epochs of twelve images, four a step, however many processes share them."""


@pytest.mark.slow
def test_two_processes_then_one_then_two(place: Place) -> None:
    """Every resumption goes on where the file before it ends, to the same number of steps."""
    two = replace(place, options=(*place.options, *RANKS))
    for stage, least in ((two, 1), (place, 3)):
        running = stage.start()
        wait_until(lambda least=least: kept_step(place.run) >= least, running)  # type: ignore[misc]
        kill(running)
        kept = kept_step(place.run)
        assert least <= kept < STEPS, "killed before its end"
    done = two.train()
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resuming from" in done.stdout
    content = torch.load(place.run / "last.ckpt", weights_only=True)
    assert content["global_step"] == STEPS
    weights = [v for v in content["state_dict"].values() if v.is_floating_point()]
    assert all(value.isfinite().all() for value in weights)
    with (place.run / "metrics.csv").open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == sorted(set(steps)), "a row per step, none twice"
    assert max(steps) == STEPS - 1
