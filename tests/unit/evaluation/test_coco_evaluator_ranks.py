"""Evaluation over two processes equals evaluation in one."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import evaluation_scenes as scenes
import torch.distributed as dist
from warm import run_ranks

from codetr.evaluation import CocoEvaluator
from codetr.training.evaluation_report import EvaluationReport

WORLD = 2
FIRST_SHARE = 11  # of 25 images: an uneven split


def _fill(evaluator: CocoEvaluator, images: list[int]) -> dict:
    evaluator.reset()
    found = scenes.detections(evaluator.annotation_file)
    for image in images:
        evaluator.update([found[image]], [scenes.info(image)])
    return {"numbers": evaluator.compute(), "per_class": evaluator.per_class}


def _evaluate(rank: int, folder: Path) -> None:
    store = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD)
    evaluator = CocoEvaluator(folder / "instances.json", scenes.CLASSES)
    images = list(evaluator.truth)
    # As samplers do to fill up, the last rank also gets an image of the first.
    uneven = images[:FIRST_SHARE] if rank == 0 else [*images[FIRST_SHARE:], images[2]]
    results = {
        "one rank without images": _fill(evaluator, images if rank == 0 else []),
        "uneven": _fill(evaluator, uneven),
    }
    (folder / f"rank{rank}.json").write_text(json.dumps(results))
    evaluator.write_predictions(folder / f"predictions{rank}.json")
    trainer: Any = SimpleNamespace(is_global_zero=rank == 0, loggers=[])
    EvaluationReport(evaluator, folder / f"report{rank}").on_test_epoch_end(trainer, None)
    evaluator.write_metrics(folder / f"metrics{rank}.json")
    dist.destroy_process_group()


def test_two_ranks_equal_one_process(tmp_path):
    scenes.write_annotations(tmp_path / "instances.json", num_images=25)
    evaluator = CocoEvaluator(tmp_path / "instances.json", scenes.CLASSES)
    expected = _fill(evaluator, list(evaluator.truth))
    assert expected["numbers"]["AP"] > 0.1

    run_ranks(_evaluate, (tmp_path,), WORLD)
    for rank in range(WORLD):
        results = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert results == {"one rank without images": expected, "uneven": expected}
    records = json.loads((tmp_path / "predictions0.json").read_text())
    found = scenes.detections(tmp_path / "instances.json")
    assert len(records) == sum(len(d) for d in found.values())
    assert json.loads((tmp_path / "metrics0.json").read_text())["images"] == 25
    assert not (tmp_path / "predictions1.json").exists()
    assert not (tmp_path / "report1").exists()
    alone: Any = SimpleNamespace(is_global_zero=True, loggers=[])
    EvaluationReport(evaluator, tmp_path / "alone").on_test_epoch_end(alone, None)
    for name in ("diagnosis.json", "f1.csv", "precision_recall.csv", "confusion_matrix.csv"):
        own, expected_text = (tmp_path / part / name for part in ("report0", "alone"))
        assert own.read_text() == expected_text.read_text()
    assert not (tmp_path / "metrics1.json").exists()
