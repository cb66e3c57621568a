"""The order of a step: what needs no matching is measured while costs travel."""

from types import SimpleNamespace

import pytest
import torch

from codetr.structures import LossTerm
from codetr.supervision.assigners import CostTables, Matching
from codetr.supervision.schemes.protocol import Proposal
from codetr.training import losses as losses_module
from codetr.training.losses import training_losses


class Known:
    """A scheme with a known assignment."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def propose(self, *_: object) -> Proposal:
        return Proposal()

    def score(self, *_: object) -> dict[str, LossTerm]:
        self.log.append("score")
        return {"known": LossTerm(torch.ones(()), 1.0)}


class Matched(Known):
    """One that matches ``layers`` layers."""

    def __init__(self, log: list[str], layers: int) -> None:
        super().__init__(log)
        self.layers = layers

    def problems(self, *_: object) -> list[CostTables]:
        self.log.append("problems")
        return [CostTables(costs=torch.rand(self.layers, 2, 3), counts=(2,))]

    def measure(self, decoded: object, batch: object, matched: list) -> dict[str, LossTerm]:
        self.log.append("measure")
        ((*pairs,),) = matched
        assert len(pairs) == self.layers
        return {"matched": LossTerm(torch.ones(()), 1.0)}


def test_costs_leave_together_before_and_are_solved_after_the_other_losses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[str] = []

    class Logged(Matching):
        def __init__(self, problems: list[CostTables]) -> None:
            log.append(f"{len(problems)} leave")
            super().__init__(problems)

        def result(self) -> list:
            log.append("solve")
            return super().result()

    monkeypatch.setattr(losses_module, "Matching", Logged)
    detector = SimpleNamespace(
        encode=lambda images: None, queries=lambda memory: None, decode=lambda memory, groups: {}
    )
    schemes = {"first": Matched(log, 1), "known": Known(log), "second": Matched(log, 2)}
    found = training_losses(detector, schemes, SimpleNamespace(images=None))  # type: ignore[arg-type]
    assert list(found) == ["first/matched", "known/known", "second/matched"]
    expected = ["problems", "problems", "2 leave", "score", "solve", "measure", "measure"]
    assert log == expected


def test_without_matching_nothing_is_solved() -> None:
    log: list[str] = []
    detector = SimpleNamespace(
        encode=lambda images: None, queries=lambda memory: None, decode=lambda memory, groups: {}
    )
    training_losses(detector, {"known": Known(log)}, SimpleNamespace(images=None))  # type: ignore[arg-type]
    assert log == ["score"]
