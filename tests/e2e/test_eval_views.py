"""Test-time views in eval.py: the same as in Python and in predict.py."""

import json
from pathlib import Path

import pytest
import torch
from commands import SMALL, Command

import codetr
from codetr.inference.views import Views

VIEWS = ("views.flip=true", "views.scales=[1.0,1.5]", "views.tile=96")


def records(folder: Path) -> dict[int, list[dict]]:
    found: dict[int, list[dict]] = {}
    for record in json.loads((folder / "predictions.json").read_text()):
        found.setdefault(record["image_id"], []).append(record)
    return found


def test_views_and_another_resize(command: Command, tmp_path: Path) -> None:
    data = tmp_path / "data"
    own_data = (*SMALL, f"data.root={data}")
    done = command("train.py", *own_data, "debug=fast", "augmentation=small", "name=a")
    assert done.returncode == 0, done.stderr[-2000:]
    model = tmp_path / "runs/a/best.ckpt"
    told = (f"checkpoint={model}", "trainer=cpu")
    done = command("eval.py", *told, *VIEWS, "name=views")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "runs/views/panel.png").is_file()
    found = records(tmp_path / "runs/views")

    views = Views(flip=True, scales=(1.0, 1.5), tile=96)
    predictor = codetr.load(model, device="cpu", views=views)
    (annotations,) = data.rglob("val.json")
    for image in _images(annotations):
        own = found[image["id"]]
        (path,) = annotations.parent.rglob(f"val/**/{image['file_name']}")
        expected = predictor.predict(path)
        boxes = torch.tensor([r["bbox"] for r in own])
        boxes[:, 2:] += boxes[:, :2]
        assert len(own) == len(expected) > 0
        scores = torch.tensor([r["score"] for r in own])
        torch.testing.assert_close(scores, expected.scores, atol=1e-5, rtol=0)
        torch.testing.assert_close(boxes, expected.boxes_xyxy_px, atol=1e-2, rtol=0)

    done = command("eval.py", *told, "views.flip=true", "evaluation.branch=atss")
    assert done.returncode == 2
    assert "evaluation.branch=atss: auxiliary heads are evaluated on one view" in done.stderr

    done = command("eval.py", *told, "trainer.limit_test_batches=0")
    assert done.returncode == 2
    assert "no image was evaluated" in done.stderr

    for name, more in (("plain", ()), ("resized", ("augmentation=detr_224",))):
        done = command("eval.py", *told, *more, "panel=null", f"name={name}")
        assert done.returncode == 0, done.stderr[-2000:]
    plain, resized = records(tmp_path / "runs/plain"), records(tmp_path / "runs/resized")
    assert plain.keys() == resized.keys() == found.keys()
    scores = [[r["score"] for r in one[next(iter(one))]][:5] for one in (plain, resized)]
    assert scores[0] != pytest.approx(scores[1]), "the chosen resize is used"


def _images(path: Path) -> list[dict]:
    return json.loads(path.read_text())["images"]
