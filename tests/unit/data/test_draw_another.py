"""Large-scale jitter: which crops are used, and when another image is drawn."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from codetr.data.augment import DrawAnother, KeepVisible, LsjAugmentation
from codetr.data.copy_paste import CopyPaste
from codetr.data.dataset import AugmentedDataset
from codetr.data.sample import BoxSet, Sample, SampleKey
from codetr.errors import UserError

SIDE = 48


def sample(index: int, boxes: list[list[float]], shown: list[bool] | None = None) -> Sample:
    """A grey image of value ``index``; the mask of a box fills it, or is empty."""
    targets = BoxSet.ground_truth(
        torch.tensor(boxes).reshape(-1, 4), torch.zeros(len(boxes), dtype=torch.int64)
    )
    if shown is not None:
        masks = torch.zeros(len(boxes), SIDE, SIDE, dtype=torch.uint8)
        for mask, (x0, y0, x1, y1), full in zip(masks, boxes, shown, strict=True):
            mask[int(y0) : int(y1), int(x0) : int(x1)] = int(full)
        targets = replace(targets, masks=masks)
    return Sample(
        image=torch.full((3, SIDE, SIDE), index, dtype=torch.uint8),
        targets=targets,
        image_id=index,
        original_size=(SIDE, SIDE),
    )


BOX = [4.0, 4.0, 20.0, 20.0]
LSJ = LsjAugmentation(SIDE, ratio=(1.0, 1.0))


def test_an_image_without_boxes_is_used() -> None:
    assert len(LSJ(sample(0, [])).targets) == 0
    assert len(LSJ(sample(0, [], [])).targets) == 0


def test_a_crop_that_no_box_reaches_is_used() -> None:
    """At four times its size, most crops of the image show nothing of a box in its corner."""
    enlarged = LsjAugmentation(SIDE, ratio=(4.0, 4.0))
    counts = set()
    for seed in range(40):
        torch.manual_seed(seed)
        counts.add(len(enlarged(sample(0, [[0.0, 0.0, 12.0, 12.0]], [True])).targets))
    assert counts == {0, 1}


@pytest.mark.parametrize(
    ("boxes", "shown"),
    [
        ([BOX], [False]),
        ([BOX, [1.0, 1.0, 9.0, 9.0]], [False, False]),
        ([[4.0, 4.0, 4.005, 20.0]], None),
        ([[4.0, 4.0, 4.005, 20.0]], [True]),
    ],
    ids=["hidden", "all hidden", "thin", "thin with a mask"],
)
def test_boxes_that_are_all_filtered_ask_for_another_image(boxes: Any, shown: Any) -> None:
    with pytest.raises(DrawAnother):
        LSJ(sample(0, boxes, shown))


def test_one_visible_box_is_enough() -> None:
    found = LSJ(sample(0, [BOX, [24.0, 24.0, 40.0, 40.0]], [False, True]))
    assert len(found.targets) == 1
    assert found.targets.masks is not None
    assert found.targets.masks.any()


def test_teachers_are_filtered_but_do_not_decide() -> None:
    thin = BoxSet.ground_truth(torch.tensor([[4.0, 4, 4.005, 20]]), torch.zeros(1).long())
    kept = KeepVisible(0.01)(replace(sample(0, [BOX]), teachers=(thin,)))
    assert (len(kept.targets), len(kept.teachers[0])) == (1, 0)


class Source:
    """Images of which only some keep a box; their orientation as given: wide, or not."""

    def __init__(self, visible: list[bool], wide: list[bool]) -> None:
        self.visible = visible
        sizes = torch.tensor([[SIDE, 2 * SIDE] if w else [SIDE, SIDE] for w in wide])
        self.annotations = SimpleNamespace(sizes=sizes, path=Path("a.json"))

    def __len__(self) -> int:
        return len(self.visible)

    def size(self, index: int) -> tuple[int, int]:
        height, width = self.annotations.sizes[index].tolist()
        return height, width

    def sample(self, index: int, least: object = None) -> Sample:
        return sample(index, [BOX], [self.visible[index]])


def found(dataset: AugmentedDataset, count: int = 60) -> list[int]:
    return [dataset[SampleKey(0, epoch)].image_id for epoch in range(count)]


def test_the_other_image_is_any_of_the_same_orientation() -> None:
    source = Source([False, True, True, False, True], wide=[True, True, True, True, False])
    dataset = AugmentedDataset(source, LSJ, seed=0)  # type: ignore[arg-type]
    assert set(found(dataset)) == {1, 2}
    assert found(dataset) == found(dataset), "keyed by seed, epoch, image and copy"
    assert found(dataset) != found(AugmentedDataset(source, LSJ, seed=1))  # type: ignore[arg-type]
    copies = [dataset[SampleKey(0, 0, copy)].image_id for copy in range(30)]
    assert set(copies) == {1, 2}
    assert [dataset[SampleKey(4, e)].image_id for e in range(9)] == [4] * 9


def test_only_images_that_take_part_are_drawn() -> None:
    source = Source([False, True, True, True], wide=[False] * 4)
    kept = torch.tensor([0, 3])
    dataset = AugmentedDataset(source, LSJ, seed=0, images=kept)  # type: ignore[arg-type]
    assert len(dataset) == 2
    assert set(found(dataset)) == {3}


def test_the_image_that_is_pasted_is_drawn_again_too() -> None:
    pairs = []

    class Pairs(CopyPaste):
        def __call__(self, sample: Sample, *others: Sample) -> Sample:
            pairs.append((sample.image_id, *(other.image_id for other in others)))
            return sample

    source = Source([False, True], wide=[False, False])
    dataset = AugmentedDataset(source, LSJ, seed=0, mix=Pairs())  # type: ignore[arg-type]
    found(dataset, 20)
    assert set(pairs) == {(1, 1)}


def test_where_no_image_keeps_a_box_it_ends() -> None:
    dataset = AugmentedDataset(Source([False], [False]), LSJ, seed=0)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"rejected 1000 images of a\.json"):
        dataset[0]
