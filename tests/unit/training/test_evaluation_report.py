"""What an evaluation leaves behind where there is nothing to diagnose."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from codetr.classes import ClassList
from codetr.evaluation import CocoEvaluator, lvis_evaluator
from codetr.structures import Detections, ImageInfo
from codetr.training.csv_logger import CsvLogger
from codetr.training.evaluation_report import EvaluationReport

CLASSES = ClassList(names=("ant", "bat"), category_ids=(4, 2))


def write(path: Path, crowd: int) -> Path:
    image = {"id": 1, "neg_category_ids": [], "not_exhaustive_category_ids": []}
    box = {"id": 1, "image_id": 1, "category_id": 4, "bbox": [0, 0, 9, 9], "iscrowd": crowd}
    categories = [{"id": 4, "frequency": "r"}, {"id": 2, "frequency": "c"}]
    content = {"images": [image], "annotations": [box], "categories": categories}
    path.write_text(json.dumps(content))
    return path


def report(evaluator: CocoEvaluator, folder: Path) -> EvaluationReport:
    found = Detections(
        boxes_xyxy_px=torch.tensor([[0.0, 0, 9, 9]]),
        scores=torch.tensor([0.5]),
        labels=torch.tensor([0]),
    )
    evaluator.update([found], [ImageInfo(image_id=1, original_size=(9, 9), scale=(1.0, 1.0))])
    done = EvaluationReport(evaluator, folder)
    trainer: Any = SimpleNamespace(is_global_zero=True, loggers=[CsvLogger(folder)])
    done.on_test_epoch_end(trainer, None)  # type: ignore[arg-type]
    trainer.loggers[0].finalize("success")
    return done


def test_numbers_go_to_the_loggers(tmp_path: Path) -> None:
    done = report(CocoEvaluator(write(tmp_path / "a.json", 0), CLASSES), tmp_path / "run")
    assert done.metrics["AP"] == pytest.approx(1)
    (row,) = CsvLogger(tmp_path / "run").read()
    assert float(row["eval/AP"]) == pytest.approx(1)
    assert (tmp_path / "run/diagnosis.json").is_file()


@pytest.mark.parametrize("case", ["lvis", "only a crowd"])
def test_the_reason_for_no_diagnosis_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    path = write(tmp_path / "a.json", int(case != "lvis"))
    make = lvis_evaluator if case == "lvis" else CocoEvaluator
    with caplog.at_level(logging.INFO, logger="codetr"):
        report(make(path, CLASSES), tmp_path / "run")
    reason = "not every object of a.json is annotated" if case == "lvis" else "holds an object"
    assert reason in caplog.text
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "metrics.json",
        "metrics.csv",
        "predictions.json",
    }
