"""The parts of the method (Table 9): any of them alone trains every parameter that is there."""

import pytest
from tiny import backward, batch, build, options, without_gradient
from torch import nn

from codetr.training.losses import training_losses

SCHEMES = ("one_to_one", "collaborative")
HEADS_ALONE = ("scheme.collaborative.lambda_1=0",)
QUERIES_ALONE = ("scheme.collaborative.lambda_2=0",)
PARTS = {"heads": HEADS_ALONE, "queries": QUERIES_ALONE}


def losses_of(schemes: nn.Module, detector: nn.Module) -> set[str]:
    found = training_losses(detector, schemes, batch((3, 2)))  # type: ignore[arg-type]
    own = [name.split("/")[1] for name in found if name.startswith("collaborative/")]
    return set(own)


@pytest.mark.parametrize("head", options("aux_heads"))
@pytest.mark.parametrize("counts", [(3, 2), (0, 0)], ids=str)
@pytest.mark.parametrize("part", PARTS)
def test_every_parameter_gets_a_gradient(head: str, counts: tuple[int, ...], part: str) -> None:
    detector, schemes = build(SCHEMES, (head,), *PARTS[part])
    assert backward(detector, schemes, batch(counts)).isfinite()
    assert without_gradient(detector, schemes) == []


def test_parts_have_their_losses_alone() -> None:
    assert losses_of(*build(SCHEMES, ("atss",))[::-1]) == {"atss", "positive_atss"}
    assert losses_of(*build(SCHEMES, ("atss",), *HEADS_ALONE)[::-1]) == {"atss"}
    queries = losses_of(*build(SCHEMES, ("atss",), *QUERIES_ALONE)[::-1])
    assert queries == {"idle", "positive_atss"}


def test_heads_that_only_assign_learn_nothing() -> None:
    detector, schemes = build(SCHEMES, ("atss",), *QUERIES_ALONE)
    backward(detector, schemes, batch((3, 2)))
    part = schemes["collaborative"]
    assert all(not p.grad.any() for p in part.heads.parameters())
    assert any(p.grad.any() for p in part.embeddings.parameters())


def test_neither_part_is_no_head() -> None:
    detector, neither = build(SCHEMES, ("atss",), *HEADS_ALONE, *QUERIES_ALONE)
    _, without = build(SCHEMES, ())
    assert list(neither["collaborative"].parameters()) == []
    data = batch((3, 2))
    assert backward(detector, neither, data) == backward(detector, without, data)
