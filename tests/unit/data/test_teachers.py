"""Teachers' boxes: what files say, how several are merged, and that they travel with the image."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from custom_folders import CELLS, write_voc
from hydra.utils import instantiate
from torchvision.ops import box_iou

from codetr.checkpoints.experiment import compose_train
from codetr.conf_folder import conf_folder
from codetr.data.annotations import CocoAnnotations, load_annotations
from codetr.data.augment import Chain, DetrAugmentation, FlipOnly
from codetr.data.datamodule import CocoDataModule
from codetr.data.sample import BoxSet, SampleKey
from codetr.data.sources import CocoFolder
from codetr.data.teachers import Parallel, Suppression, TeacherBoxes, read_results
from codetr.errors import UserError

CONF = conf_folder() / "data"
FOLDER = CocoFolder(
    train_annotations="train.json",
    train_images="train",
    val_annotations="val.json",
    val_images="val",
)


def result(image: int, box: list[float], score: float, category: int = 3) -> dict[str, Any]:
    return {"image_id": image, "bbox": box, "score": score, "category_id": category}


@pytest.fixture
def annotations(make_root: Callable[..., Path]) -> CocoAnnotations:
    """Images 5, 15, 25 of 40 x 30, 30 x 40, 40 x 30 pixels; classes 0, 3, 7."""
    return load_annotations(make_root(3) / "train.json")


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


RESULTS = [
    result(5, [1, 2, 10, 10], 0.3),
    result(25, [30, 20, 20, 20], 0.9, 7),
    result(5, [0, 0, 5, 5], 0.8, 0),
    result(5, [50, 50, 4, 4], 0.7),  # outside the image
    result(999, [0, 0, 5, 5], 0.7),  # an image that is not there
    result(5, [3, 3, 6, 6], 0.5),
]


@pytest.mark.parametrize("by_image", [False, True])
def test_both_forms_are_read_clipped_and_sorted(
    annotations: CocoAnnotations, tmp_path: Path, by_image: bool
) -> None:
    content: Any = RESULTS
    if by_image:
        content = {str(i): [r for r in RESULTS if r["image_id"] == i] for i in (5, 25, 999)}
    found = read_results(write(tmp_path / "t.json", content), annotations)
    first, second, third = (found.of(i) for i in range(3))
    assert second is None
    assert first is not None
    assert third is not None
    assert first.scores.tolist() == pytest.approx([0.8, 0.5, 0.3])
    assert first.labels.tolist() == [0, 1, 1]
    assert first.boxes[0].tolist() == [0, 0, 5, 5]
    assert third.boxes.tolist() == [[30, 20, 40, 30]]
    assert third.labels.tolist() == [2]


def test_the_best_boxes_above_a_score_count(annotations: CocoAnnotations, tmp_path: Path) -> None:
    path = write(tmp_path / "t.json", RESULTS)
    best = read_results(path, annotations, top_k=2)
    assert [len(found) for found in (best.of(0), best.of(2)) if found] == [2, 1]
    assert best.of(0).scores.tolist() == pytest.approx([0.8, 0.5])  # type: ignore[union-attr]
    high = read_results(path, annotations, min_score=0.6)
    assert high.of(0).scores.tolist() == pytest.approx([0.8])  # type: ignore[union-attr]
    none = read_results(path, annotations, min_score=0.95).of(2)
    assert none is not None
    assert len(none) == 0


def test_an_image_named_without_boxes_is_not_a_missing_one(
    annotations: CocoAnnotations, tmp_path: Path
) -> None:
    found = read_results(write(tmp_path / "t.json", {"5": [], "15": []}), annotations)
    assert len(found.of(0) or []) == 0
    assert found.of(0) is not None
    assert found.of(2) is None


def boxes(rows: list[list[float]]) -> BoxSet:
    """Rows of x0, y0, x1, y1, label, score."""
    table = torch.tensor(rows).reshape(-1, 6)
    return BoxSet(boxes=table[:, :4], labels=table[:, 4].long(), scores=table[:, 5])


def random_boxes(count: int) -> BoxSet:
    low = torch.rand(count, 2) * 30
    corners = torch.cat([low, low + 5 + torch.rand(count, 2) * 15], dim=1)
    return BoxSet(boxes=corners, labels=torch.randint(3, (count,)), scores=torch.rand(count))


def naive_suppression(found: list[BoxSet], weights: list[float], limit: float) -> list[list[float]]:
    pool = [
        (float(s) + w, float(s), int(k), b)
        for own, w in zip(found, weights, strict=True)
        for b, k, s in zip(own.boxes, own.labels, own.scores, strict=True)
    ]
    kept: list[Any] = []
    for rank, score, label, box in sorted(pool, key=lambda entry: -entry[0]):
        rivals = [k for k in kept if k[2] == label]
        if all(box_iou(box[None], k[3][None]).item() <= limit for k in rivals):
            kept.append((rank, score, label, box))
    average = sum(len(own) for own in found) // len(found)
    return [[score, label, *box.tolist()] for _, score, label, box in kept[:average]]


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.0, 0.6]])
def test_suppression_equals_a_naive_loop(weights: list[float]) -> None:
    found = [random_boxes(9), random_boxes(14)]
    (merged,) = Suppression(weights=weights)(found, (50, 50))
    rows = torch.cat([merged.scores[:, None], merged.labels[:, None], merged.boxes], dim=1)
    expected = torch.tensor(naive_suppression(found, weights, 0.2))
    torch.testing.assert_close(rows, expected)
    assert len(merged) <= 11


def test_absent_teachers_do_not_count_in_the_average() -> None:
    apart = boxes([[10 * i, 0, 10 * i + 5, 5, 0, 0.9 - 0.1 * i] for i in range(4)])
    (merged,) = Suppression()([apart, None], (20, 60))
    assert len(merged) == 4
    (merged,) = Suppression()([apart, boxes([])], (20, 60))
    assert len(merged) == 2


def test_an_image_without_any_teacher() -> None:
    (whole,) = Suppression()([None, None], (20, 60))
    assert (whole.boxes.tolist(), whole.labels.tolist()) == ([[0, 0, 60, 20]], [0])
    assert whole.scores.tolist() == [0]
    (none,) = Suppression(whole_image=False)([None], (20, 60))
    assert len(none) == 0
    first, second = Parallel()([None, random_boxes(3)], (20, 60))
    assert (len(first), len(second)) == (0, 3)


def test_teachers_travel_through_the_augmentation_into_the_batch(
    make_root: Callable[..., Path], tmp_path: Path
) -> None:
    """A teacher that says what the annotation file says goes where the ground truth goes."""
    root = make_root()
    content = json.loads((root / "train.json").read_text())
    copied = [
        result(a["image_id"], a["bbox"], 0.25, a["category_id"]) for a in content["annotations"]
    ]
    files = [write(tmp_path / f"{name}.json", copied) for name in "ab"]
    recipe = DetrAugmentation([24, 28, 32], 48, [30, 40], 80, (20, 32))
    module = CocoDataModule(root, FOLDER, recipe, Chain(), num_workers=0, teachers=files)
    module.setup("fit")
    for batch in module.train_dataloader():
        assert len(batch.teachers) == 2
        for teacher in batch.teachers:
            for mine, truth in zip(teacher, batch.targets, strict=True):
                torch.testing.assert_close(mine.boxes, truth.boxes)
                assert torch.equal(mine.labels, truth.labels)
                assert mine.weights.tolist() == [0.25] * len(truth)
    assert all(batch.teachers == () for batch in module.val_dataloader())


def test_teachers_of_a_folder_in_any_format(tmp_path: Path) -> None:
    """Results by the ids of the converted file fit after another division of the data too."""
    root = write_voc(tmp_path / "root", CELLS)
    overrides = [
        "data=custom",
        f"data.root={root}",
        f"data.source.cache={tmp_path / 'cache'}",
        f"data.teachers=[{tmp_path / 't.json'}]",
        "sweep=schemes",
        "augmentation=none",
        "data.num_workers=0",
    ]
    source = instantiate(compose_train(overrides).data.source)
    splits = [load_annotations(s.annotations) for s in (source(root).train, source(root).val)]
    ids = {Path(n).stem: i for s in splits for n, i in zip(s.file_names, s.image_ids, strict=True)}
    place = {name: float(number) for number, name in enumerate(CELLS)}
    results = [result(ids[name], [x, 1, 10, 10], 0.5, 1) for name, x in place.items()]
    write(tmp_path / "t.json", results)
    module = instantiate(compose_train([*overrides, "data.source.seed=3"]).data)
    module.setup("fit")
    for batch in module.train_dataloader():
        ((*boxes,),) = batch.teachers
        for info, mine in zip(batch.infos, boxes, strict=True):
            x = mine.boxes[:, 0] - mine.boxes[:, 2] / 2  # shares of the image
            assert (x * 40).tolist() == pytest.approx([place[Path(info.path).stem]], abs=1e-4)


@pytest.mark.parametrize("data", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_every_data_set_takes_teachers(data: str, tmp_path: Path) -> None:
    chosen = [f"data={data}", f"data.root={tmp_path}", "data.teachers=[a.json]", "sweep=schemes"]
    module = instantiate(compose_train([*chosen, "augmentation=detr"]).data)
    assert module.teachers == ("a.json",)
    assert module.teacher_boxes.keywords["min_score"] == 0.3


def test_flip_moves_teachers_with_the_image(make_root: Callable[..., Path], tmp_path: Path) -> None:
    path = write(tmp_path / "t.json", [result(5, [1, 2, 10, 10], 0.3)])
    module = CocoDataModule(make_root(3), FOLDER, FlipOnly(1.0), Chain(), 1, teachers=[path])
    module.setup("fit")
    (teacher,) = module.train_dataset[SampleKey(0)].teachers
    assert teacher.boxes.tolist() == [[29, 2, 39, 12]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ([{"image_id": 5}], "lacks category_id"),
        ([{"bbox": [1, 2, 3, 4]}], "contains no COCO results"),
        ([result(5, [1, 2, 3], 0.5)], "bbox of four numbers"),
        ([result(5, [1, 10**400, 3, 4], 0.5)], "bbox of four numbers"),
        ([{**result(5, [1, 2, 3, 4], 0.5), "score": [[]]}], "or a score"),
        ([result(5, [1, 2, 3, 4], 0.5, 4)], "has category 4"),
        ([result(6, [1, 2, 3, 4], 0.5)], "for none of the images"),
        ('[{"image_id": 5, "bbox": [1, 2, NaN, 4], "score": 1, "category_id": 3}]', "not finite"),
    ],
)
def test_bad_files_are_named(
    annotations: CocoAnnotations, tmp_path: Path, content: object, message: str
) -> None:
    path = write(tmp_path / "t.json", content)
    with pytest.raises(UserError, match=message) as got:
        TeacherBoxes([path], annotations, Parallel())
    assert str(path) in str(got.value)
    assert "\n" not in str(got.value)


def test_bad_options_are_named(annotations: CocoAnnotations, tmp_path: Path) -> None:
    path = write(tmp_path / "t.json", RESULTS)
    with pytest.raises(UserError, match="top_k=0"):
        TeacherBoxes([path], annotations, Parallel(), top_k=0)
    with pytest.raises(UserError, match="cannot read"):
        TeacherBoxes([tmp_path / "none.json"], annotations, Parallel())
    with pytest.raises(UserError, match="one weight for each"):
        TeacherBoxes([path], annotations, Suppression(weights=[0.5, 0.5]))(0)
