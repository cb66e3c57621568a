"""What is found in an image does not depend on the images beside it, nor on the number of ranks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import SMALL, Command

TOLD = {
    "1": ("data.eval_batch_size=1",),
    "2": ("data.eval_batch_size=2",),
    "8": ("data.eval_batch_size=8",),
    "two ranks": (
        "data.eval_batch_size=8",
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
    ),
    "padded": ("data.eval_batch_size=8", "data.eval_batches=padded"),
}


def _found(run: Path) -> dict[int, np.ndarray[Any, Any]]:
    """By image: (n, 5) class and box of what is found with some certainty, sorted."""
    rows: dict[int, list[list[float]]] = {}
    for record in json.loads((run / "predictions.json").read_text()):
        if record["score"] > 0.2:
            row = [record["score"], record["category_id"], *record["bbox"]]
            rows.setdefault(record["image_id"], []).append(row)
    return {image: np.array(sorted(found)) for image, found in rows.items()}


def _same(a: dict[int, np.ndarray[Any, Any]], b: dict[int, np.ndarray[Any, Any]]) -> bool:
    return a.keys() == b.keys() and all(
        a[i].shape == b[i].shape and np.allclose(a[i], b[i], atol=1e-3, rtol=1e-4) for i in a
    )


def test_detections_do_not_depend_on_the_batch(
    command: Command, data_root: Path, tmp_path: Path
) -> None:
    done = command(
        "train.py",
        *[o for o in SMALL if not o.startswith("data.")],
        "debug=overfit",  # on 16 training images of three shapes
        "data.source.num_train=16",
        "data.source.num_val=2",
        f"data.root={data_root}",
        "scheme=[one_to_one,denoising]",
        "schedule.epochs=40",
        "name=a",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ap, found = {}, {}
    for name, told in TOLD.items():
        run = tmp_path / "runs" / name.replace(" ", "_")
        given = (f"checkpoint={tmp_path}/runs/a/last.ckpt", "panel=null", f"name={run.name}")
        done = command("eval.py", *given, "trainer=cpu", *told)
        assert done.returncode == 0, done.stderr[-2000:]
        assert ("AP depends on data.eval_batch_size" in done.stdout) == (name == "padded")
        ap[name] = json.loads((run / "metrics.json").read_text())["AP"]
        found[name] = _found(run)
    padded, padded_found = ap.pop("padded"), found.pop("padded")
    assert ap["1"] > 0.2
    assert ap == pytest.approx(dict.fromkeys(ap, ap["1"]), abs=0.002)
    assert len(found["1"]) == 16
    assert all(_same(found["1"], other) for other in found.values())
    assert abs(padded - ap["1"]) > 0.002
    assert not _same(found["1"], padded_found)
