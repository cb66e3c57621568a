"""How schemes are answered: together, and in the order that leaves nobody waiting."""

import pytest
import torch
from torch.testing import assert_close

from codetr.loss_terms import Count, Losses, LossTerm
from codetr.structures import Assignment, Predictions, Targets
from codetr.supervision.assigners import CostTables, Matching
from codetr.supervision.criteria import FocalClassification, SetCriterion, Supervised, by_layer
from codetr.supervision.schemes import scoring
from codetr.supervision.schemes.scoring import Score, matched, measured, scored

TARGETS = Targets(
    boxes=torch.full((1, 4), 0.5),
    labels=torch.zeros(1, dtype=torch.int64),
    weights=torch.ones(1),
    size=torch.tensor([8.0, 8.0]),
)


def group(assignments: tuple[Assignment, ...], cls: float = 1.0) -> Supervised:
    layer = Predictions(logits=torch.zeros(1, 3, 2), boxes=torch.full((1, 3, 4), 0.5))
    return Supervised(
        criterion=SetCriterion(FocalClassification(), cls=cls),
        layers=[layer] * len(assignments),
        targets=[TARGETS],
        assignments=assignments,
        num_boxes=Count(torch.ones(())),
    )


def pair(query: int) -> Assignment:
    zero = torch.zeros(1, dtype=torch.int64)
    return Assignment(image=zero, query=zero + query, target=zero)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the runner did."""
    done: list[str] = []

    class Logged(Matching):
        def __init__(self, problems: list[CostTables]) -> None:
            done.append(f"{len(problems)} leave")
            super().__init__(problems)

        def result(self) -> list:
            done.append("solve")
            return super().result()

    def logged(groups: list[Supervised]) -> list[list[Losses]]:
        if groups:
            done.append(f"measure {len(groups)}")
        return measure(groups)

    measure = scoring.measure
    monkeypatch.setattr(scoring, "Matching", Logged)
    monkeypatch.setattr(scoring, "measure", logged)
    return done


def known(cls: float) -> Score:
    """A score that needs no matching."""
    (layers,) = yield from measured(group((pair(0), pair(1)), cls))
    return by_layer(layers)


def one_to_one(cheapest: int) -> Score:
    """One that matches two layers, then measures them."""
    costs = torch.ones(2, 1, 3)
    costs[..., cheapest] = 0
    (assignments,) = yield from matched(CostTables(costs=costs, counts=(1,)))
    assert [int(a.query) for a in assignments] == [cheapest] * 2
    (layers,) = yield from measured(group(assignments))
    return by_layer(layers)


def test_costs_leave_before_and_are_solved_after_what_needs_no_matching(log: list[str]) -> None:
    plain = {"own": LossTerm(torch.ones(()), 1.0)}
    found = scored(
        {
            "first": one_to_one(2),
            "plain": plain,
            "known": known(1.0),
            "second": one_to_one(0),
            "other": known(2.0),
        }
    )
    assert list(found) == ["first", "plain", "known", "second", "other"]
    assert found["plain"] == plain
    assert log == ["2 leave", "measure 2", "solve", "measure 2"]


def test_everybody_gets_the_own_answer(log: list[str]) -> None:
    """The same as alone, whoever else asks."""
    scores = {"a": known, "b": one_to_one, "c": known}
    found = scored({name: score(1) for name, score in scores.items()})
    for name, score in scores.items():
        (alone,) = scored({name: score(1)}).values()
        assert list(found[name]) == list(alone)
        for term in alone:
            assert_close(found[name][term].value, alone[term].value)


def test_without_matching_nothing_is_solved(log: list[str]) -> None:
    scored({"known": known(1.0), "none": {}})
    assert log == ["measure 1"]
    assert scored({}) == {}


def test_an_error_of_a_scheme_is_its_own() -> None:
    def broken() -> Score:
        yield from measured(group((pair(0),)))
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        scored({"known": known(1.0), "broken": broken()})
