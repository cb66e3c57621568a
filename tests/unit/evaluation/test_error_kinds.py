"""The TIDE decomposition: one error of each kind, and the AP50 of fixing it."""

from pathlib import Path

import evaluation_scenes as random_scenes
import numpy as np
import pytest
import torch
from pycocotools import mask as pycocotools_mask

from codetr.evaluation import CocoEvaluator
from codetr.evaluation.error_kinds import Errors, Kind, find_errors
from codetr.evaluation.ground_truth import ImageTruth
from codetr.evaluation.matching import make_scenes

BOX = [10.0, 10, 40, 40]
FAR = [200.0, 200, 40, 40]
SHIFTED = [10.0, 30, 40, 40]  # IoU with BOX 1/3
TOUCHING = [10.0, 48, 40, 40]  # IoU with BOX 2/78
CAT, DOG, EEL = range(3)

Rows = list[tuple[int, float, list[float]]]


def truth(*objects: tuple[int, list[float]], crowd: tuple[int, ...] = ()) -> ImageTruth:
    boxes = torch.tensor([box for _, box in objects], dtype=torch.float64).reshape(-1, 4)
    return ImageTruth(
        boxes_xywh_px=boxes,
        labels=torch.tensor([label for label, _ in objects], dtype=torch.int64),
        crowd=torch.tensor([int(i in crowd) for i in range(len(objects))], dtype=torch.int64),
        area=boxes[:, 2] * boxes[:, 3],
    )


def rows(found: Rows) -> torch.Tensor:
    table = [[label, score, *box] for label, score, box in found]
    return torch.tensor(table, dtype=torch.float64).reshape(-1, 6)


def errors(*images: tuple[Rows, ImageTruth]) -> Errors:
    scenes = make_scenes(
        {i: rows(found) for i, (found, _) in enumerate(images)},
        {i: true for i, (_, true) in enumerate(images)},
        100,
    )
    return find_errors(scenes, 3)


def counts(found: Errors) -> dict[Kind, int]:
    return {kind: found.count(kind) for kind in Kind if found.count(kind)}


TWO = truth((CAT, BOX), (DOG, FAR))
GOOD_DOG = (DOG, 0.9, FAR)
ONE_OF_EACH: dict[Kind, tuple[Rows, float, float]] = {  # detections; AP50 with and without
    Kind.CLASS: ([(EEL, 0.8, BOX), GOOD_DOG], 0.5, 1.0),
    Kind.LOCALISATION: ([(CAT, 0.8, SHIFTED), GOOD_DOG], 0.5, 1.0),
    Kind.BOTH: ([(EEL, 0.8, SHIFTED), (CAT, 0.7, BOX), GOOD_DOG], 1.0, 1.0),
    Kind.DUPLICATE: ([(CAT, 0.8, BOX), (CAT, 0.7, BOX), GOOD_DOG], 1.0, 1.0),
    Kind.BACKGROUND: ([(CAT, 0.9, TOUCHING), (CAT, 0.8, BOX), GOOD_DOG], 0.75, 1.0),
    Kind.MISSED: ([GOOD_DOG], 0.5, 1.0),
}


@pytest.mark.parametrize("kind", Kind)
def test_one_error_of_each_kind(kind: Kind) -> None:
    found, before, after = ONE_OF_EACH[kind]
    seen = errors((found, TWO))
    assert counts(seen) == {kind: 1}
    assert seen.ap50() == pytest.approx(before)
    assert seen.ap50({kind}) == pytest.approx(after)
    assert seen.cost(kind) == pytest.approx(after - before)
    assert all(seen.cost(other) == 0 for other in Kind if other is not kind)


def test_perfect_detections_have_no_error() -> None:
    seen = errors(([(CAT, 0.5, BOX), GOOD_DOG], TWO), ([], truth()))
    assert counts(seen) == {}
    assert seen.ap50() == 1


def test_a_detection_in_a_crowd_of_its_class_is_no_error() -> None:
    true = truth((CAT, [0.0, 0, 100, 100]), (DOG, FAR), crowd=(0,))
    found: Rows = [(CAT, 0.9, BOX), (CAT, 0.8, BOX), GOOD_DOG]
    assert counts(errors((found, true))) == {}
    assert counts(errors(([(DOG, 0.95, BOX), *found], true))) == {Kind.BACKGROUND: 1}


def test_of_two_errors_on_one_object_the_better_is_fixed() -> None:
    true = truth((CAT, BOX), (CAT, FAR))
    seen = errors(([(CAT, 0.9, FAR), (DOG, 0.8, BOX), (EEL, 0.7, BOX)], true))
    assert counts(seen) == {Kind.CLASS: 2}
    assert seen.ap50() == pytest.approx(51 / 101)
    assert seen.ap50({Kind.CLASS}) == pytest.approx(1)
    # An object that is found already: the wrong one goes, and nothing is gained by it.
    seen = errors(([(CAT, 0.9, BOX), (DOG, 0.8, BOX)], truth((CAT, BOX))))
    assert (counts(seen), seen.cost(Kind.CLASS)) == ({Kind.CLASS: 1}, 0)


def test_an_object_with_a_wrong_detection_is_not_missed() -> None:
    for found in ([(DOG, 0.5, BOX)], [(CAT, 0.5, SHIFTED)]):
        assert Kind.MISSED not in counts(errors((found, truth((CAT, BOX)))))
    assert counts(errors(([(DOG, 0.5, SHIFTED)], truth((CAT, BOX))))) == {
        Kind.BOTH: 1,
        Kind.MISSED: 1,
    }


def test_a_class_whose_objects_were_all_missed_is_right_without_detections() -> None:
    seen = errors(([], truth((CAT, BOX))))
    assert (seen.ap50(), seen.ap50({Kind.MISSED})) == (0, 1)
    seen = errors(([(CAT, 0.5, FAR)], truth((CAT, BOX))))
    assert seen.ap50({Kind.MISSED}) == 0
    assert seen.ap50({Kind.MISSED, Kind.BACKGROUND}) == 1


def test_nothing_to_find() -> None:
    seen = errors(([(CAT, 0.5, BOX)], truth()))
    assert counts(seen) == {Kind.BACKGROUND: 1}
    assert seen.ap50() == -1


def naive_kinds(found: torch.Tensor, true: ImageTruth) -> tuple[list[Kind | None], int]:
    """Kinds in the order of the detections (None: right or in a crowd), and objects that were
    missed: from the definitions, box by box, with the overlaps of pycocotools.
    """
    alone = true.crowd == 0
    boxes, labels = true.boxes_xywh_px[alone], true.labels[alone].tolist()
    crowds, crowd_labels = true.boxes_xywh_px[~alone], true.labels[~alone].tolist()
    order = sorted(range(len(found)), key=lambda i: -float(found[i, 1]))
    free, covered = set(range(len(labels))), set()
    kinds: list[Kind | None] = [None] * len(found)
    wrong = []
    for i in order:
        label, box = int(found[i, 0]), found[i : i + 1, 2:].numpy()
        iou = [
            float(pycocotools_mask.iou(box, b[None].numpy(), [0])[0, 0]) if len(boxes) else 0.0
            for b in boxes
        ]
        own = [(v, j) for j, v in enumerate(iou) if labels[j] == label]
        usable = [(v, j) for v, j in own if j in free and v >= 0.5]
        crowd = any(
            c == label and pycocotools_mask.iou(box, b[None].numpy(), [1])[0, 0] >= 0.5
            for c, b in zip(crowd_labels, crowds, strict=True)
        )
        if usable:
            free.remove(max(usable)[1])
        elif not crowd:
            other = [(v, j) for j, v in enumerate(iou) if labels[j] != label]
            wrong.append((i, max(own, default=(0.0, -1)), max(other, default=(0.0, -1))))
    for i, (own_iou, own_box), (other_iou, other_box) in wrong:
        if 0.1 <= own_iou < 0.5:
            kinds[i] = Kind.LOCALISATION
            covered.add(own_box)
        elif other_iou >= 0.5:
            kinds[i] = Kind.CLASS
            covered.add(other_box)
        elif own_iou >= 0.5:
            kinds[i] = Kind.DUPLICATE
        elif max(own_iou, other_iou) < 0.1:
            kinds[i] = Kind.BACKGROUND
        else:
            kinds[i] = Kind.BOTH
    return kinds, len(free - covered)


@pytest.mark.parametrize("seed", range(3))
def test_random_scenes_equal_the_definitions(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "instances.json"
    random_scenes.write_annotations(path, num_images=40, seed=seed)
    evaluator = CocoEvaluator(path, random_scenes.CLASSES)
    for image, found in random_scenes.detections(path, seed=seed + 10).items():
        jitter = torch.rand(len(found), generator=torch.Generator().manual_seed(seed)) * 1e-3
        evaluator.update(
            [
                type(found)(
                    boxes_xyxy_px=found.boxes_xyxy_px,
                    scores=found.scores + jitter,
                    labels=found.labels,
                )
            ],
            [random_scenes.info(image)],
        )
    ap50 = evaluator.compute()["AP50"]
    detections, true = evaluator.detections, evaluator.truth
    seen = find_errors(make_scenes(detections, true, 10_000), len(random_scenes.CLASSES))
    expected = dict.fromkeys(Kind, 0)
    for image in detections:
        kinds, missed = naive_kinds(detections[image], true[image])
        for kind in kinds:
            if kind is not None:
                expected[kind] += 1
        expected[Kind.MISSED] += missed
    assert {kind: seen.count(kind) for kind in Kind} == expected
    assert min(expected.values()) > 0, "the case has every kind"

    limited = find_errors(make_scenes(detections, true, 100), len(random_scenes.CLASSES))
    assert limited.ap50() == pytest.approx(ap50, abs=1e-9)
    assert limited.ap50(set(Kind)) == pytest.approx(1)
    assert np.all([limited.cost(kind) >= -1e-9 for kind in Kind])
