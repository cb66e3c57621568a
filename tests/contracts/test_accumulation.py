"""Accumulated batches against as many processes: which losses have the same gradients."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from tiny import batch, build
from torch import Tensor, nn
from torch.testing import assert_close

import codetr.distributed
from codetr.loss_terms import total_loss
from codetr.structures import Batch
from codetr.training.losses import training_losses

COUNTS = (1, 9, 0, 4)
"""Boxes of four images. One has none, and not all of its neighbours' fit into one mean."""
KNOWN_FROM_TARGETS = ("denoising", "hybrid", "group", "mixed", "teacher")
PER_PROCESS = ("paa", "rcnn", "rcnn_4conv1fc", "retinanet")
"""Heads whose counts the official code does not average over processes."""
KNOWN_AFTER_ASSIGNMENT = ("atss", "fcos", "gfl")


class Processes:
    """Stands for torch.distributed in one process: every rank is run twice, first to hear what it
    has to give to each reduction, then with the sums.
    """

    def __init__(self, size: int) -> None:
        self.given: list[list[Tensor]] = [[] for _ in range(size)]
        self.rank, self.place = 0, 0
        self.heard = False

    def is_available(self) -> bool:
        return True

    is_initialized = is_available

    def get_world_size(self) -> int:
        return len(self.given)

    def turns(self) -> Iterator[tuple[int, bool]]:
        """Whose turn it is, and whether it counts."""
        for heard in (False, True):
            self.heard = heard
            for rank in range(len(self.given)):
                self.rank, self.place = rank, 0
                yield rank, heard

    def all_reduce(self, total: Tensor) -> None:
        if self.heard:
            total.copy_(torch.stack([own[self.place] for own in self.given]).sum(0))
            self.place += 1
        else:
            self.given[self.rank].append(total.clone())


def images() -> list[Batch]:
    """Four batches of one image."""
    whole = batch(COUNTS, 128).to(torch.float64)
    return [
        Batch(
            images=replace(
                whole.images.map(lambda value, b=b: value[b : b + 1]),  # type: ignore[misc]
            ),
            targets=whole.targets[b : b + 1],
            teachers=tuple(boxes[b : b + 1] for boxes in whole.teachers),
        )
        for b in range(len(COUNTS))
    ]


def in_one_step(batches: Sequence[Batch]) -> list[Batch]:
    return [replace(b, step=tuple(other.counts for other in batches)) for b in batches]


def gradients(
    model: nn.ModuleDict,
    processes: Sequence[Sequence[Batch]],
    monkeypatch: pytest.MonkeyPatch,
) -> list[Tensor]:
    """Of a step with these batches on every process: what DDP and accumulation make of them."""
    model.zero_grad()
    every = Processes(len(processes))
    number = sum(map(len, processes))
    with monkeypatch.context() as patch:
        patch.setattr(codetr.distributed, "dist", every)
        for rank, counts in every.turns():
            for data in processes[rank]:
                torch.manual_seed(sum(map(len, data.targets)))  # draws are an image's, not a rank's
                losses = training_losses(model["detector"], model["schemes"], data)  # type: ignore[arg-type]
                if counts:
                    (total_loss(losses) / number).backward()
    return [torch.zeros(1) if p.grad is None else p.grad.clone() for p in model.parameters()]


def model(schemes: Sequence[str], heads: Sequence[str], *more: str) -> nn.ModuleDict:
    detector, parts = build(schemes, heads, *more)
    return nn.ModuleDict({"detector": detector, "schemes": parts}).double()


def same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(torch.allclose(x, y, rtol=1e-8, atol=1e-10) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("scheme", KNOWN_FROM_TARGETS)
def test_four_accumulated_batches_are_four_processes(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, data = model(("one_to_one", scheme), ()), images()
    expected = gradients(trained, [[b] for b in data], monkeypatch)
    assert any(gradient.any() for gradient in expected)
    found = gradients(trained, [in_one_step(data)], monkeypatch)
    halves = [in_one_step(data[:2]), in_one_step(data[2:])]
    mixed = gradients(trained, halves, monkeypatch)
    for one, other, wanted in zip(found, mixed, expected, strict=True):
        assert_close(one, wanted, rtol=1e-8, atol=1e-10)
        assert_close(other, wanted, rtol=1e-8, atol=1e-10)
    assert not same(gradients(trained, [data], monkeypatch), expected)


@pytest.mark.parametrize("head", [*PER_PROCESS, *KNOWN_AFTER_ASSIGNMENT])
def test_heads_that_count_what_they_assigned_count_their_own_batch(
    head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an average over processes, accumulation is another thing: see docs/training.md."""
    without_queries = "scheme.collaborative.lambda_1=0"
    trained = model(("one_to_one", "collaborative"), (head,), without_queries)
    data = images()
    expected = gradients(trained, [[b] for b in data], monkeypatch)
    found = gradients(trained, [in_one_step(data)], monkeypatch)
    assert same(found, expected) == (head in PER_PROCESS)


def test_positive_queries_count_their_own_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = model(("one_to_one", "collaborative"), ("retinanet",))
    data = images()
    expected = gradients(trained, [[b] for b in data], monkeypatch)
    assert not same(gradients(trained, [in_one_step(data)], monkeypatch), expected)


def test_one_box_and_29_are_both_divided_by_15() -> None:
    few, many = batch((1,)), batch((29,))
    for data in in_one_step([few, many]):
        assert data.mean_over_step(lambda counts: sum(counts.targets)) == 15
    assert many.mean_over_step(lambda counts: sum(counts.targets)) == 29
