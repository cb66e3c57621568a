import contextlib
import io
import json
import logging
from pathlib import Path

import evaluation_scenes as scenes
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchmetrics.detection import MeanAveragePrecision

from codetr.classes import ClassList
from codetr.errors import UserError
from codetr.evaluation import CocoEvaluator
from codetr.evaluation.limits import exceeded
from codetr.evaluation.metrics import CocoMetrics
from codetr.evaluation.report import class_table
from codetr.structures import Detections

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@pytest.fixture
def annotations(tmp_path) -> Path:
    path = tmp_path / "instances.json"
    scenes.write_annotations(path, num_images=60)
    return path


def _evaluator(path: Path, found: dict[int, Detections] | None = None) -> CocoEvaluator:
    evaluator = CocoEvaluator(path, scenes.CLASSES)
    for image, detections in (found or {}).items():
        evaluator.update([detections], [scenes.info(image)])
    return evaluator


def _reference(path: Path, records: list[dict] | str, images: list[int] | None = None) -> COCOeval:
    """The oracle: the reference implementation, having summarised (its text is ``.printed``)."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        truth.dataset.setdefault("info", {})
        reference = COCOeval(truth, truth.loadRes(records), "bbox")
        reference.params.imgIds = images or truth.getImgIds()
        reference.evaluate()
        reference.accumulate()
        with contextlib.redirect_stdout(printed):
            reference.summarize()
    reference.printed = printed.getvalue()
    return reference


def _numbers(reference: COCOeval) -> dict[str, float]:
    return dict(zip(NAMES, reference.stats.tolist(), strict=True))


def _per_class(reference: COCOeval) -> list[list[float]]:
    """AP, AP50 and AR of every class."""
    result = []
    for category in scenes.CLASSES.category_ids:
        position = reference.params.catIds.index(category)
        precision = reference.eval["precision"][:, :, position, 0, -1]
        recall = reference.eval["recall"][:, position, 0, -1]
        parts = [values[values > -1] for values in (precision, precision[0], recall)]
        result.append([float(values.mean()) if len(values) else -1.0 for values in parts])
    return result


def _records(found: dict[int, Detections]) -> list[dict]:
    """COCO result records, made here and not by the code under test."""
    records = []
    for image, detections in found.items():
        corners = detections.boxes_xyxy_px.double().tolist()
        rest = (detections.scores.tolist(), detections.labels.tolist())
        for (x0, y0, x1, y1), score, label in zip(corners, *rest, strict=True):
            records.append(
                {
                    "image_id": image,
                    "category_id": scenes.CLASSES.category_ids[label],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "score": score,
                }
            )
    return records


@pytest.mark.parametrize("seed", range(4))
def test_equals_pycocotools(tmp_path, seed):
    path = tmp_path / "instances.json"
    scenes.write_annotations(path, num_images=60, seed=seed)
    found = scenes.detections(path, seed=seed + 100)
    evaluator = _evaluator(path, found)
    numbers = evaluator.compute()
    reference = _reference(path, _records(found))
    expected = _numbers(reference)
    assert 0.1 < expected["AP"] < 0.9  # the case says something
    assert min(expected.values()) > 0
    assert numbers == pytest.approx(expected, abs=1e-6, rel=0)
    assert list(evaluator.per_class.values()) == [
        pytest.approx(dict(zip(("AP", "AP50", "AR"), own, strict=True)), abs=1e-6, rel=0)
        for own in _per_class(reference)
    ]
    assert set(evaluator.per_class["never seen"].values()) == {-1}
    assert evaluator.table() == reference.printed.rstrip("\n")


def test_recalls_that_meet_a_threshold_exactly_count_as_in_pycocotools(tmp_path):
    # Ten boxes, found one after the other among false alarms: recall is 0.1, 0.2, ...
    path = tmp_path / "instances.json"
    boxes = [[i * 50.0, 0.0, 40.0, 40.0] for i in range(10)]
    content = {
        "images": [{"id": 1}],
        "categories": [{"id": 7, "name": "a"}],
        "annotations": [
            {"id": i + 1, "image_id": 1, "category_id": 7, "bbox": b, "area": 1600, "iscrowd": 0}
            for i, b in enumerate(boxes)
        ],
    }
    content["categories"] += [{"id": i, "name": n} for i, n in ((0, "b"), (90, "c"), (12, "d"))]
    path.write_text(json.dumps(content))
    corners = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in boxes])
    alarms = corners + torch.tensor([0.0, 200, 0, 200])
    found = Detections(
        boxes_xyxy_px=torch.stack([corners, alarms], 1).flatten(0, 1),
        scores=torch.linspace(1, 0.05, 20),
        labels=torch.zeros(20, dtype=torch.long),
    )
    expected = _numbers(_reference(path, _records({1: found})))
    assert _evaluator(path, {1: found}).compute() == pytest.approx(expected, abs=1e-6, rel=0)


def _corners(boxes_xywh: list[list[float]]) -> torch.Tensor:
    boxes = torch.tensor(boxes_xywh).reshape(-1, 4)
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)


def test_equals_mean_average_precision_of_torchmetrics(annotations):
    found = scenes.detections(annotations)
    content = json.loads(annotations.read_text())
    for annotation in content["annotations"]:
        annotation["area"] = annotation["area"] or 1.0  # 0 means missing to torchmetrics
    annotations.write_text(json.dumps(content))
    index = scenes.CLASSES.index()
    oracle = MeanAveragePrecision(backend="pycocotools")
    oracle.warn_on_many_detections = False  # there are more than 100 in an image
    for image, detections in sorted(found.items()):  # equal scores are ranked by image
        own = [a for a in content["annotations"] if a["image_id"] == image]
        truth = {
            "boxes": _corners([a["bbox"] for a in own]),
            "labels": torch.tensor([index[a["category_id"]] for a in own], dtype=torch.long),
            "iscrowd": torch.tensor([a["iscrowd"] for a in own], dtype=torch.long),
            "area": torch.tensor([a["area"] for a in own]),
        }
        predicted = {
            "boxes": detections.boxes_xyxy_px,
            "scores": detections.scores,
            "labels": detections.labels,
        }
        oracle.update([predicted], [truth])
    expected = oracle.compute()
    numbers = _evaluator(annotations, found).compute()
    sizes = {"small": "s", "medium": "m", "large": "l"}
    names = {"map": "AP", "map_50": "AP50", "map_75": "AP75"}
    names |= {f"map_{size}": f"AP{short}" for size, short in sizes.items()}
    names |= {f"mar_{most}": f"AR{most}" for most in (1, 10, 100)}
    names |= {f"mar_{size}": f"AR{short}" for size, short in sizes.items()}
    assert 0.1 < numbers["AP"] < 0.9
    assert numbers == pytest.approx(
        {name: float(expected[key]) for key, name in names.items()}, abs=1e-6, rel=0
    )


@pytest.mark.golden
def test_equals_pycocotools_on_real_annotations(shared):
    path = shared / "data" / "coco_tiny" / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    ids = tuple(c["id"] for c in content["categories"])
    classes = ClassList(names=tuple(c["name"] for c in content["categories"]), category_ids=ids)
    evaluator, index = CocoEvaluator(path, classes), classes.index()
    generator, records = torch.Generator().manual_seed(0), []
    for image in content["images"]:
        own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        boxes = torch.tensor([a["bbox"] for a in own], dtype=torch.float64).reshape(-1, 4)
        noise = torch.randn(len(own), 4, generator=generator, dtype=torch.float64)
        boxes = boxes + noise * 0.05 * boxes[:, 2:].repeat(1, 2)
        scores = torch.rand(len(own), generator=generator, dtype=torch.float64)
        labels = torch.tensor([index[a["category_id"]] for a in own], dtype=torch.long)
        corners = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
        found = Detections(boxes_xyxy_px=corners, scores=scores, labels=labels)
        evaluator.update([found], [scenes.info(image["id"])])
        records += [
            {"image_id": image["id"], "category_id": a["category_id"], "bbox": b, "score": s}
            for a, b, s in zip(own, boxes.tolist(), scores.tolist(), strict=True)
        ]
    expected = _numbers(_reference(path, records))
    assert evaluator.compute() == pytest.approx(expected, abs=1e-6, rel=0)


def test_perfect_detections_have_ap_one(annotations):
    evaluator = CocoEvaluator(annotations, scenes.CLASSES)
    for image, truth in evaluator.truth.items():
        low, size = truth.boxes_xywh_px[:, :2], truth.boxes_xywh_px[:, 2:]
        boxes = torch.cat([low, low + size], dim=1)
        found = Detections(
            boxes_xyxy_px=boxes, scores=torch.ones(len(boxes)), labels=truth.labels
        ).take(truth.crowd == 0)
        evaluator.update([found], [scenes.info(image)])
    numbers = evaluator.compute()
    assert numbers["AP"] == pytest.approx(1.0)
    assert numbers["AR100"] == pytest.approx(1.0)


def test_only_images_that_were_given_count_and_each_once(annotations, caplog):
    found = scenes.detections(annotations)
    some = dict(list(found.items())[:20])
    expected = _numbers(_reference(annotations, _records(some), list(some)))
    evaluator = _evaluator(annotations, some)
    repeated = list(some)[3]
    evaluator.update([found[repeated]], [scenes.info(repeated)])
    with caplog.at_level(logging.INFO, logger="codetr.evaluation"):
        assert evaluator.compute() == pytest.approx(expected, abs=1e-6, rel=0)
    assert "20 of 60 images of instances.json" in caplog.text


def test_reset_forgets_everything(annotations):
    found = scenes.detections(annotations)
    evaluator = _evaluator(annotations, found)
    before = evaluator.compute()
    evaluator.reset()
    with pytest.raises(RuntimeError, match="compute"):
        evaluator.table()
    with pytest.raises(UserError, match="no image was evaluated"):
        evaluator.compute()
    for image, detections in found.items():
        evaluator.update([detections], [scenes.info(image)])
    assert evaluator.compute() == before


def test_nothing_found_and_nothing_to_find(annotations):
    nothing = Detections(
        boxes_xyxy_px=torch.zeros(0, 4),
        scores=torch.zeros(0),
        labels=torch.zeros(0, dtype=torch.long),
    )
    every = _evaluator(annotations, {scenes.image_id(i): nothing for i in range(60)})
    assert every.compute()["AP"] == 0
    empty = _evaluator(annotations, {scenes.image_id(0): nothing})
    assert set(empty.compute().values()) == {-1}
    assert {value for own in empty.per_class.values() for value in own.values()} == {-1}


def test_written_predictions_evaluate_to_the_same_numbers_with_pycocotools(annotations, tmp_path):
    found = scenes.detections(annotations)
    evaluator = _evaluator(annotations, found)
    numbers = evaluator.compute()
    evaluator.write_predictions(tmp_path / "run" / "predictions.json")
    records = json.loads((tmp_path / "run" / "predictions.json").read_text())
    assert len(records) == sum(len(d) for d in found.values())
    assert {r["category_id"] for r in records} == {7, 0, 90}
    reference = _reference(annotations, str(tmp_path / "run" / "predictions.json"))
    assert numbers == pytest.approx(_numbers(reference), abs=1e-6, rel=0)


def test_metrics_file_holds_numbers_classes_and_image_counts(annotations, tmp_path):
    evaluator = _evaluator(annotations, scenes.detections(annotations))
    numbers = evaluator.compute()
    evaluator.write_metrics(tmp_path / "metrics.json")
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert {name: content[name] for name in NAMES} == numbers
    assert content["per_class"] == evaluator.per_class
    assert content["images"] == content["images_in_split"] == 60


def test_class_table_counts_the_boxes_that_can_be_found(annotations):
    evaluator = _evaluator(annotations, scenes.detections(annotations))
    evaluator.compute()
    columns = [list(column.cells) for column in evaluator.class_table().columns]
    content = json.loads(annotations.read_text())
    wanted = [
        sum(a["category_id"] == c and not a["iscrowd"] for a in content["annotations"])
        for c in scenes.CLASSES.category_ids
    ]
    assert columns[0] == list(scenes.CLASSES.names)
    assert columns[1] == [str(n) for n in wanted]
    assert columns[2][3] == columns[3][3] == columns[4][3] == "-"
    assert columns[3][:3] == [f"{own['AP50']:.3f}" for own in evaluator.per_class.values()][:3]


def test_table_of_many_classes_holds_the_best_and_the_worst():
    aps = torch.linspace(0, 1, 1203).tolist()
    classes = ClassList(
        names=tuple(f"[c{i}]" for i in range(1203)), category_ids=tuple(range(1203))
    )
    metrics = CocoMetrics(summary={}, per_class=tuple({"AP": a, "AP50": a, "AR": a} for a in aps))
    names = list(class_table(metrics, classes, range(1203)).columns[0].cells)
    assert names == [rf"\[c{i}]" for i in (*range(1202, 1162, -1), *range(39, -1, -1))]
    unmeasured = {"AP": -1.0, "AP50": -1.0, "AR": -1.0}
    metrics = CocoMetrics(summary={}, per_class=(*metrics.per_class[:2], *[unmeasured] * 1201))
    assert class_table(metrics, classes, range(1203)).row_count == 2


def test_repeated_class_names_get_their_id(annotations):
    classes = ClassList(names=("a", "a", "c", "d"), category_ids=scenes.CLASSES.category_ids)
    evaluator = CocoEvaluator(annotations, classes)
    for image, found in scenes.detections(annotations).items():
        evaluator.update([found], [scenes.info(image)])
    evaluator.compute()
    assert list(evaluator.per_class) == ["a (7)", "a (0)", "c", "d"]


def _one(label: int = 0, score: float = 0.5) -> Detections:
    return Detections(
        boxes_xyxy_px=torch.tensor([[0.0, 0, 5, 5]]),
        scores=torch.tensor([score]),
        labels=torch.tensor([label]),
    )


def test_predictions_that_do_not_fit_are_named(annotations):
    evaluator = _evaluator(annotations)
    known = scenes.info(scenes.image_id(1))
    with pytest.raises(UserError, match=r"instances\.json: has no image 99999"):
        evaluator.update([_one()], [scenes.info(99999)])
    with pytest.raises(UserError, match=r"4 classes but class 4 .*num_classes=4"):
        evaluator.update([_one(label=4)], [known])
    with pytest.raises(UserError, match="not finite"):
        evaluator.update([_one(score=float("nan"))], [known])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{broken", "not valid JSON"),
        ("[]", "not the object with images"),
        ('{"images": [{"id": 1}], "annotations": [{"id": 5}]}', "no 'image_id'"),
        (
            '{"images": [{"id": 1}], "annotations": '
            '[{"id": 5, "image_id": 1, "category_id": 7, "bbox": [1, 2, 3]}]}',
            r"annotation 5 in .* has bbox \[1, 2, 3\]",
        ),
        (
            '{"images": [{"id": 1}], "annotations": '
            '[{"id": 5, "image_id": 1, "category_id": 8, "bbox": [1, 2, 3, 4]}]}',
            "annotation 5 in .* has category_id 8",
        ),
    ],
)
def test_annotation_files_that_cannot_be_used_are_named(tmp_path, text, message):
    path = tmp_path / "bad.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        CocoEvaluator(path, scenes.CLASSES)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("keys", [{}, {"area": None, "iscrowd": None}, {"iscrowd": False}])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_missing_area_and_crowd_have_coco_defaults(tmp_path, keys, encoding):
    path = tmp_path / "plain.json"
    annotation = {"id": 5, "image_id": 1, "category_id": 7, "bbox": [0.0, 0.0, 20.0, 30.0], **keys}
    content = {"images": [{"id": 1}], "annotations": [annotation]}
    path.write_text(json.dumps(content), encoding=encoding)
    truth = CocoEvaluator(path, scenes.CLASSES).truth[1]
    np.testing.assert_array_equal(truth.area, [600.0])
    np.testing.assert_array_equal(truth.crowd, [0])


@pytest.mark.parametrize("counted", [[3], [1, 20], [2, 5, 40, 300]])
def test_other_numbers_of_detections_equal_pycocotools(tmp_path, counted):
    path = tmp_path / "instances.json"
    scenes.write_annotations(path, num_images=60, seed=5)
    found = scenes.detections(path, seed=6)
    evaluator = CocoEvaluator(path, scenes.CLASSES, max_detections=counted)
    for image, detections in found.items():
        evaluator.update([detections], [scenes.info(image)])
    numbers = evaluator.compute()
    with contextlib.redirect_stdout(io.StringIO()):  # its summary is for 1, 10 and 100 alone
        truth = COCO(str(path))
        truth.dataset.setdefault("info", {})
        reference = COCOeval(truth, truth.loadRes(_records(found)), "bbox")
        reference.params.maxDets = counted
        reference.evaluate()
        reference.accumulate()
    precision, recall = reference.eval["precision"], reference.eval["recall"]

    def mean(values: np.ndarray) -> float:
        return float(values[values > -1].mean())

    expected = {
        "AP": mean(precision[..., 0, -1]),
        "AP50": mean(precision[0, ..., 0, -1]),
        "AP75": mean(precision[5, ..., 0, -1]),
        **{f"AP{size}": mean(precision[..., i, -1]) for i, size in enumerate("sml", 1)},
        **{f"AR{number}": mean(recall[..., 0, i]) for i, number in enumerate(counted)},
        **{f"AR{size}": mean(recall[..., i, -1]) for i, size in enumerate("sml", 1)},
    }
    assert numbers == pytest.approx(expected, abs=1e-6, rel=0)
    assert list(numbers) == list(expected)
    assert f"maxDets={counted[-1]:>3}" in evaluator.table().splitlines()[0]


def _crowded(path: Path, objects: int) -> Detections:
    """An annotation file of one image with many small objects of a class, and all of them found."""
    boxes = [[12.0 * (i % 40), 12.0 * (i // 40), 10.0, 10.0] for i in range(objects)]
    categories = zip(scenes.CLASSES.names, scenes.CLASSES.category_ids, strict=True)
    content = {
        "images": [{"id": 1}],
        "categories": [{"id": i, "name": name} for name, i in categories],
        "annotations": [
            {"id": i + 1, "image_id": 1, "category_id": 7, "bbox": box, "area": 100, "iscrowd": 0}
            for i, box in enumerate(boxes)
        ],
    }
    path.write_text(json.dumps(content))
    corners = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in boxes])
    return Detections(
        boxes_xyxy_px=corners,
        scores=torch.linspace(1, 0.5, objects),
        labels=torch.full((objects,), scenes.CLASSES.index()[7]),
    )


def test_images_with_more_objects_than_count(tmp_path):
    path = tmp_path / "instances.json"
    found = _crowded(path, 600)
    numbers = {}
    for most in (100, 600):
        evaluator = CocoEvaluator(path, scenes.CLASSES, max_detections=(1, 10, most))
        evaluator.update([found], [scenes.info(1)])
        numbers[most] = evaluator.compute()
        said = exceeded([evaluator.measure.limit], evaluator.truth)
        assert len(said) == (most < 600)
    assert numbers[100]["AP"] == pytest.approx(17 / 101)  # recall ends at a sixth
    assert numbers[600]["AP"] == pytest.approx(1)
    assert numbers[600]["AR600"] == pytest.approx(1)


@pytest.mark.parametrize("given", [[], [0, 10], [10, 1], [10, 10], 100])
def test_max_detections_must_increase(annotations, given):
    with pytest.raises(UserError, match=r"evaluation\.max_detections="):
        CocoEvaluator(annotations, scenes.CLASSES, max_detections=given)
