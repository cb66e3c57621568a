"""Instability of matching during training is that of the checkpoints of all epochs."""

import csv
import json
from pathlib import Path

import pytest
from commands import Command


def test_training_logs_what_its_checkpoints_show(
    command: Command, small: tuple[str, ...], tmp_path: Path
) -> None:
    told = ("callbacks=instability", "checkpointing=every_epoch", "schedule.epochs=3")
    done = command("train.py", *small, *told, "name=stable", "logger=[csv]", "optimizer.lr=0.01")
    assert done.returncode == 0, done.stderr[-2000:]
    run = tmp_path / "runs/stable"
    with (run / "metrics.csv").open(newline="") as file:
        logged = [row for row in csv.DictReader(file) if row.get("matching/layer0/IS")]
    pattern = f"checkpoint={run}/epochs/*.ckpt"
    done = command(
        *("scripts/analyse.py", "analysis=instability", pattern, "images=null", "device=cpu"),
        "name=shown",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "runs/shown/instability.json").read_text())["rows"]
    layers = len({row["layer"] for row in rows})
    assert len(logged) == len(rows) / layers == 2
    for number, row in enumerate(rows):
        own = logged[number // layers]
        assert float(own[f"matching/{row['layer']}/IS"]) == pytest.approx(row["IS"])
        free = float(own[f"matching/{row['layer']}/order_free_IS"])
        assert free == pytest.approx(row["order-free IS"])
    assert any(row["IS"] > 0 for row in rows), "something moves"
