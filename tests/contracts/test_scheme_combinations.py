"""Schemes combine freely: what several of them owe together that each owes alone."""

import pytest
import torch
from tiny import backward, batch, build, without_gradient
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from codetr.models.detectors.protocol import MAIN
from codetr.training.losses import propose, training_losses

BASE = "one_to_one"
COMBINATIONS = [
    (BASE, "collaborative", "teacher"),
    (BASE, "hybrid", "teacher"),
    (BASE, "collaborative", "hybrid"),
    (BASE, "denoising", "hybrid"),
    (BASE, "denoising", "group", "teacher"),
    (BASE, "denoising", "collaborative", "hybrid", "group", "teacher"),
]


@pytest.mark.parametrize("schemes", COMBINATIONS, ids="+".join)
@pytest.mark.parametrize("counts", [(3, 2), (0, 0)], ids=str)
def test_losses_are_finite_and_reach_every_parameter(
    schemes: tuple[str, ...], counts: tuple[int, int]
) -> None:
    detector, parts = build(schemes, ("atss",))
    assert backward(detector, parts, batch(counts)).isfinite()
    assert without_gradient(detector, parts) == []


def test_processes_with_and_without_boxes_take_part_in_one_reduction_of_the_same_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    every = ("denoising", "collaborative", "hybrid", "group", "mixed", "teacher")
    detector, parts = build((BASE, *every), ("atss", "fcos", "gfl", "paa", "rcnn", "retinanet"))
    seen: list[Tensor] = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", seen.append)
    names = [
        list(training_losses(detector, parts, batch(counts)))  # type: ignore[arg-type]
        for counts in ((3, 2), (3, 0), (0, 0))
    ]
    assert names[0] == names[1] == names[2]
    assert len(seen) == 3  # one each
    assert len({len(counts) for counts in seen}) == 1


@torch.no_grad()
@pytest.mark.parametrize("schemes", COMBINATIONS, ids="+".join)
def test_the_main_group_and_every_scheme_are_undisturbed(schemes: tuple[str, ...]) -> None:
    detector, parts = build(schemes, ("atss",))
    detector.double().eval()
    parts.double().eval()
    data = batch((3, 2)).to(torch.float64)
    memory = detector.encode(data.images)
    groups, _ = propose(detector, parts, memory, data)
    together = detector.decode(memory, groups)
    assert len(together) == len(groups)
    alone = detector(data.images)
    torch.testing.assert_close(together[MAIN].layers[-1].logits, alone.logits, rtol=0, atol=1e-10)
    losses = training_losses(detector, parts, data)
    assert {name.split("/")[0] for name in losses} == set(schemes)
    for name in {"hybrid", "group", "teacher"} & set(schemes):
        only = training_losses(detector, {BASE: parts[BASE], name: parts[name]}, data)
        for key, term in only.items():
            torch.testing.assert_close(losses[key].value, term.value)


@pytest.mark.parametrize("schemes", COMBINATIONS, ids="+".join)
def test_inference_costs_and_holds_what_the_base_detector_does(schemes: tuple[str, ...]) -> None:
    images = batch((1, 1)).images
    flops, names = [], []
    for chosen in ((BASE,), schemes):
        detector, _ = build(chosen, ("atss",))
        detector.eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            detector(images)
        flops.append(counter.get_total_flops())
        names.append(list(detector.state_dict()))
    assert flops[0] == flops[1] > 0
    assert names[0] == names[1]
