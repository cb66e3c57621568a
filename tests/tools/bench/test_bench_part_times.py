import time

import pytest
import torch
from torch import nn

from tools.bench.part_times import Border, PartTimer, Watched, watch, watch_methods

CPU = torch.device("cpu")


class Told:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def start(self, name: str) -> None:
        self.told.append(f"<{name}")

    def stop(self) -> None:
        self.told.append(">")


def test_a_part_counts_without_the_parts_inside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 1.0, 5.0, 6.0, 7.5, 10.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    timer = PartTimer(CPU)
    timer.start("all")
    for _ in range(2):
        timer.start("inner")
        timer.stop()
    timer.stop()
    assert timer.read() == {"all": 10.0 - 4.0 - 1.5, "inner": 4.0 + 1.5}
    assert timer.read() == {}


def test_a_part_that_has_not_ended_is_noticed() -> None:
    timer = PartTimer(CPU)
    timer.start("encoder")
    with pytest.raises(AssertionError, match="encoder has not ended"):
        timer.read()


def test_every_call_of_a_watched_module_is_told() -> None:
    told = Told()
    inner = nn.Linear(2, 2)
    watch(told, [("outer", net := nn.Sequential(inner, nn.ReLU(), inner)), ("inner", inner)])
    net(torch.ones(1, 2))
    assert told.told == ["<outer", "<inner", ">", "<inner", ">", ">"]


def test_a_border_is_crossed_between_the_gradients_of_its_two_sides() -> None:
    first, last = nn.Linear(2, 2), nn.Linear(2, 1)
    seen: list[tuple[bool, bool]] = []

    class Look(Told):
        def start(self, name: str) -> None:
            super().start(name)
            seen.append((last.weight.grad is not None, first.weight.grad is not None))

    told = Look()
    watch(told, [], [Border("early", first, lambda output: [output])])
    loss = last(first(torch.ones(3, 2)).relu()).sum()
    assert told.told == []
    told.start("late")
    loss.backward()
    told.stop()
    assert told.told == ["<late", ">", "<early", ">"]
    assert seen == [(False, False), (True, False)]
    assert first.weight.grad is not None


def test_without_gradients_there_is_no_border() -> None:
    told = Told()
    net = nn.Linear(2, 2)
    watch(told, [], [Border("early", net, lambda output: [output])])
    with torch.no_grad():
        net(torch.ones(1, 2))
    assert told.told == []


class Assigner(nn.Module):
    """One that is a module, with a method beside ``forward``."""

    share = 0.5

    def forward(self, x: int) -> int:
        return self.tables(x) + 1

    def tables(self, x: int) -> int:
        return self._hidden(x)

    def _hidden(self, x: int) -> int:
        return 2 * x


def test_methods_of_a_module_are_told_however_they_are_called() -> None:
    told, made = Told(), Assigner()
    watch_methods(told, "assign", made)
    assert made(3) == 7
    assert made.tables(3) == 6
    assert told.told == ["<assign", "<assign", ">", ">", "<assign", ">"]
    made.eval()
    assert len(told.told) == 6


def test_what_is_no_module_is_told_in_its_place() -> None:
    told = Told()
    inner = Assigner()
    watched = Watched(told, "assign", inner)
    assert watched(3) == 7
    assert watched.tables(3) == 6
    assert watched.share == 0.5
    assert told.told == ["<assign", ">", "<assign", ">"]
    assert Assigner().tables(1) == 2
