"""The file of a teacher's boxes."""

import json
from pathlib import Path

import pytest
import torch

from codetr.classes import ClassList
from codetr.errors import UserError
from codetr.structures import Detections, ImageInfo
from codetr.training.teacher_boxes import ResultFile

CLASSES = ClassList(names=("a", "b"), category_ids=(7, 3))


def info(number: int) -> ImageInfo:
    return ImageInfo(image_id=number, original_size=(30, 40), scale=(1.0, 1.0))


def detections(scores: list[float]) -> Detections:
    count = len(scores)
    return Detections(
        boxes_xyxy_px=torch.tensor([[1.0, 2.0, 11.0, 22.0]]).repeat(count, 1),
        scores=torch.tensor(scores),
        labels=torch.arange(count) % 2,
    )


def test_best_boxes_above_the_score_are_written_once(tmp_path: Path) -> None:
    results = ResultFile(CLASSES, 2, 0.3)
    results.update([detections([0.9, 0.5, 0.4]), detections([0.5, 0.2])], [info(4), info(8)])
    results.update([detections([0.9, 0.5, 0.4]), detections([])], [info(4), info(9)])
    path = tmp_path / "folder" / "t.json"
    assert results.write(path) == 3
    written = json.loads(path.read_text())
    assert [(r["image_id"], r["category_id"]) for r in written] == [(4, 7), (4, 3), (8, 7)]
    assert [r["score"] for r in written] == pytest.approx([0.9, 0.5, 0.5])
    assert written[0]["bbox"] == [1, 2, 10, 20]


def test_all_boxes_or_none(tmp_path: Path) -> None:
    results = ResultFile(CLASSES, None, 0.0)
    assert results.write(tmp_path / "t.json") == 0
    results.update([detections([0.9, 0.5, 0.4])], [info(4)])
    assert results.write(tmp_path / "t.json") == 3
    with pytest.raises(UserError, match="top_k=0"):
        ResultFile(CLASSES, 0, 0.0)
