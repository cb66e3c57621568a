"""The evaluator of a configuration warns of images with more objects than it can credit."""

import json
from pathlib import Path

import pytest

from codetr.checkpoints.experiment import compose_train
from codetr.classes import ClassList
from codetr.errors import UserError
from codetr.training.evaluators import build_evaluator

CLASSES = ClassList(names=("a", "b"), category_ids=(1, 2))
OPTIONS = ["num_classes=2", "data=coco", "data.root=x", "model.num_queries=35"]


def _write(path: Path, objects: int) -> Path:
    """An image with so many objects of each class and a crowd region, and one without."""
    annotations = [
        {"id": 2 * i + c, "image_id": 1, "category_id": c, "bbox": [i, 0, 5, 5], "iscrowd": 0}
        for i in range(objects)
        for c in (1, 2)
    ]
    annotations.append(
        {"id": 0, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 1}
    )
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    images = [{"id": 1, "neg_category_ids": [], "not_exhaustive_category_ids": []}]
    images.append({**images[0], "id": 2})
    for category in categories:
        category["frequency"] = "f"
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("options", "objects", "said"),
    [
        ([], 10, []),
        (["evaluation.max_detections=[1,9]"], 10, ["evaluation.max_detections=9"]),
        (["evaluation.max_detections=[1,10]"], 10, []),
        (["evaluation.postprocess.max_detections=19"], 10, ["postprocess.max_detections=19"]),
        (["evaluation.branch=atss", "evaluation.postprocess.max_detections=19"], 10, []),
        ([], 18, ["model.num_queries=35"]),
        (["evaluation=lvis", "evaluation.max_detections=19"], 10, ["max_detections=19"]),
    ],
)
def test_images_with_more_objects_than_count_are_warned_of(
    options: list[str],
    objects: int,
    said: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    chosen = [
        "evaluation=coco",
        *(o.replace("evaluation.branch", "+evaluation.branch") for o in options),
    ]
    cfg = compose_train([*OPTIONS, *chosen])
    build_evaluator(cfg, _write(tmp_path / "a.json", objects), CLASSES, "test")
    assert len(caplog.messages) == len(said)
    for message, start in zip(caplog.messages, said, strict=True):
        assert start in message
        assert "1 of 2 images have more objects" in message


def test_runs_without_max_detections_count_as_coco(tmp_path: Path) -> None:
    cfg = compose_train([*OPTIONS, "evaluation=coco", "~evaluation.max_detections"])
    evaluator = build_evaluator(cfg, _write(tmp_path / "a.json", 1), CLASSES, "test")
    assert "AR100" in evaluator.measure.lines


def test_lvis_counts_one_number(tmp_path: Path) -> None:
    cfg = compose_train([*OPTIONS, "evaluation=lvis", "evaluation.max_detections=[1,10,100]"])
    with pytest.raises(UserError, match=r"evaluation\.max_detections=\[1, 10, 100\]: LVIS"):
        build_evaluator(cfg, _write(tmp_path / "a.json", 1), CLASSES, "test")
