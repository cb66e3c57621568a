"""The order of a step, and how sums become means."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from codetr.loss_terms import Count, LossTerm, total_loss
from codetr.supervision.schemes.protocol import Proposal, Scheme, Start
from codetr.training.losses import divided, propose


class Known(Scheme):
    """A scheme that asks for nothing."""

    def score(self, *_: object) -> dict[str, LossTerm]:
        return {"known": LossTerm(torch.ones(()), 1.0)}


def test_sums_are_divided_by_their_counts_over_processes_in_one_reduction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two processes, of which the other one has counted 4 more of everything."""
    reduced: list[Tensor] = []

    def all_reduce(total: Tensor) -> None:
        reduced.append(total.clone())
        total.add_(reduced[-1] + 4)

    boxes, few, own = (torch.tensor(n, dtype=torch.float64) for n in (5.0, 0.25, 3.0))
    shared = Count(boxes)
    losses = {
        "cls": LossTerm(torch.tensor(21.0, requires_grad=True), 2.0, shared),
        "bbox": LossTerm(torch.tensor(14.0), 1.0, shared),
        "known": LossTerm(torch.tensor(6.0), 3.0),
        "own": LossTerm(torch.tensor(6.0), 1.0, Count(own, shared=False)),
        "least": LossTerm(torch.tensor(6.0), 1.0, Count(few, minimum=3)),
        "nothing": LossTerm(torch.tensor(0.0), 1.0, Count(own * 0, minimum=0, shared=False)),
    }
    alone = {name: term.value.item() for name, term in divided(losses).items()}
    assert alone == pytest.approx(
        {"cls": 4.2, "bbox": 2.8, "known": 6, "own": 2, "least": 2, "nothing": 0}
    )
    assert alone == {name: term.value.item() for name, term in losses.items()}
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    found = divided(losses)
    assert {name: term.value.item() for name, term in found.items()} == pytest.approx(
        {"cls": 3, "bbox": 2, "known": 6, "own": 2, "least": 2, "nothing": 0}
    )
    assert [term.weight for term in found.values()] == [2, 1, 3, 1, 1, 1]
    assert len(reduced) == 1
    total_loss(found).backward()
    assert losses["cls"].sum.grad == pytest.approx(2 / 7)
    assert divided({"known": losses["known"]}) == {"known": losses["known"]}
    assert len(reduced) == 1


class Tabled(Scheme):
    """One with queries of its own."""

    def __init__(self, *tables: object) -> None:
        super().__init__()
        self.tables = tables

    def propose(self, start: Start) -> Proposal:
        self.start = start
        return Proposal(losses={"own": LossTerm(torch.zeros(()), 1.0)})

    def score(self, *_: object) -> dict[str, LossTerm]:
        return {}


def test_every_scheme_starts_from_the_queries_of_its_own_tables_and_one_selection() -> None:
    calls = []

    def queries(memory: object, tables: list[str]) -> tuple[str, ...]:
        calls.append(tables)
        return ("main", *(f"queries of {table}" for table in tables))

    schemes = {"one": Tabled("a", "b"), "none": Known(), "two": Tabled("c")}
    detector, batch = SimpleNamespace(queries=queries), object()
    groups, losses = propose(detector, schemes, "memory", batch)  # type: ignore[arg-type]
    assert calls == [["a", "b", "c"]]
    assert [group.name for group in groups] == ["main"]
    assert list(losses) == ["one/own", "two/own"]
    for name, own in (("one", ("queries of a", "queries of b")), ("two", ("queries of c",))):
        start = schemes[name].start
        assert (start.main, start.memory, start.own, start.batch) == ("main", "memory", own, batch)
