"""Batches know the box counts of those they share an optimiser step with."""

import pytest
import torch
from torch import Tensor

from codetr.data.sample import SampleKey
from codetr.data.samplers import TrainSampler
from codetr.data.step_loader import StepLoader, Window
from codetr.structures import Batch, Images, Targets

BOXES = [3, 0, 2, 5, 1, 4, 7]


def collate(numbers: list[int]) -> Batch:
    (number,) = numbers
    size = torch.tensor([[4, 4]])
    return Batch(
        images=Images(
            pixels=torch.full((1, 3, 4, 4), float(number)),
            padding=torch.zeros(1, 4, 4, dtype=torch.bool),
            sizes=size,
            padded_sizes=size,
        ),
        targets=(boxes(number),),
        teachers=((boxes(number + 1),),),
    )


def boxes(number: int) -> Targets:
    some: Tensor = torch.rand(number, 4)
    labels = torch.zeros(number, dtype=torch.int64)
    return Targets(boxes=some, labels=labels, weights=torch.ones(number), size=torch.ones(2))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step_batches", [1, 3, 9])
def test_each_batch_knows_those_of_its_step(step_batches: int, workers: int) -> None:
    loader = StepLoader(
        BOXES,  # type: ignore[arg-type]
        step_batches=step_batches,
        collate_fn=collate,
        num_workers=workers,
    )
    assert len(loader) == len(BOXES)
    for _ in range(2):  # epochs
        found = list(loader)
        assert [len(batch.targets[0]) for batch in found] == BOXES
        for i, batch in enumerate(found):
            start = i // step_batches * step_batches
            shared = BOXES[start : start + step_batches]
            assert [counts.targets for counts in batch.step] == [(n,) for n in shared]
            assert [counts.teachers for counts in batch.step] == [((n + 1,),) for n in shared]


def test_it_reads_no_further_ahead_than_one_step() -> None:
    read: list[int] = []

    def watched(numbers: list[int]) -> Batch:
        read.extend(numbers)
        return collate(numbers)

    batches = iter(StepLoader(BOXES, step_batches=3, collate_fn=watched))  # type: ignore[arg-type]
    for i in range(len(BOXES)):
        next(batches)
        assert len(read) == min(i + 3, len(BOXES))


@pytest.mark.parametrize("stop", [None, 5])
@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_it_goes_on_from_any_batch_with_the_steps_of_a_whole_epoch(
    start: int, stop: int | None
) -> None:
    def loaded(window: Window) -> list[tuple[int, list[tuple[int, ...]]]]:
        loader = StepLoader(
            BOXES,  # type: ignore[arg-type]
            step_batches=3,
            collate_fn=collate,
            window=lambda: window,
        )
        return [(len(b.targets[0]), [counts.targets for counts in b.step]) for b in loader]

    whole = loaded(Window(stop=stop))
    assert len(whole) == (stop or len(BOXES))
    counted = whole[-1][1]
    assert counted == [(n,) for n in BOXES[:stop][3 * ((len(whole) - 1) // 3) :]]
    found = loaded(Window(start=start, stop=stop))
    assert [n for n, _ in found] == [n for n, _ in whole[start:]]
    steps_begun = -(-start // 3) * 3
    assert found[steps_begun - start :] == whole[steps_begun:]


@pytest.mark.parametrize("workers", [0, 2])
def test_images_before_the_position_are_not_read(workers: int) -> None:
    class Keys:
        def __getitem__(self, key: SampleKey) -> int:
            assert key.image not in trained_on
            return BOXES[key.image]

        def __len__(self) -> int:
            return len(BOXES)

    sampler = TrainSampler(len(BOXES), 1, seed=3)
    trained_on = {key.image for key in list(sampler)[:2]}
    loader = StepLoader(
        Keys(),  # type: ignore[arg-type]
        sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        window=lambda: Window(start=2),
    )
    assert len(list(loader)) == len(BOXES) - 2
