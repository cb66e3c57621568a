"""Joint scoring of all schemes. A score is a generator: it yields requests for matchings or
measurements and resumes with the results. Simultaneous requests of all schemes are served together,
so that all matching costs leave the device in one copy and equal criteria are computed once.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

from codetr.loss_terms import Losses
from codetr.structures import Assignment
from codetr.supervision.assigners import CostTables, Matching
from codetr.supervision.criteria import Supervised, measure


@dataclass(frozen=True)
class Match:
    """A request to match every layer of these problems."""

    problems: tuple[CostTables, ...]


@dataclass(frozen=True)
class Measure:
    """A request to measure these groups."""

    groups: tuple[Supervised, ...]


Score = Generator[Match | Measure, Any, Losses]
"""A generator of requests, which returns the losses of a scheme."""

Matched = list[tuple[Assignment, ...]]
"""An assignment of every layer of every problem."""


def matched(*problems: CostTables) -> Generator[Match, Matched, Matched]:
    """``yield from matched(...)``: an assignment of every layer of every problem."""
    return (yield Match(problems))


def measured(
    *groups: Supervised,
) -> Generator[Measure, list[list[Losses]], list[list[Losses]]]:
    """``yield from measured(...)``: the losses of every layer of every group."""
    return (yield Measure(groups))


def scored(scores: Mapping[str, Score | Losses]) -> dict[str, Losses]:
    """The losses of all schemes by name, from their losses or generators (``Scheme.score``).

    The copy of the costs to the host begins before measurements are queued, so that the device
    computes these while the host waits and solves.
    """
    losses: dict[str, Losses] = {}
    running: dict[str, Score] = {}
    for name, score in scores.items():
        if isinstance(score, Generator):
            running[name] = score
        else:
            losses[name] = score
    requests = _continued(running, dict.fromkeys(running), losses)
    while requests:
        requests = _continued(running, _answers(requests), losses)
    return {name: losses[name] for name in scores}


def _continued(
    running: Mapping[str, Score], answers: Mapping[str, Any], losses: dict[str, Losses]
) -> dict[str, Match | Measure]:
    """The next requests of the scores after their ``answers``; finished ones add to ``losses``."""
    requests = {}
    for name, answer in answers.items():
        try:
            requests[name] = running[name].send(answer)
        except StopIteration as end:
            losses[name] = end.value
    return requests


def _answers(requests: Mapping[str, Match | Measure]) -> dict[str, Any]:
    matches = {name: r.problems for name, r in requests.items() if isinstance(r, Match)}
    groups = {name: r.groups for name, r in requests.items() if isinstance(r, Measure)}
    problems = [problem for own in matches.values() for problem in own]
    matching = Matching(problems) if problems else None
    answers = _divided(groups, measure([group for own in groups.values() for group in own]))
    return answers | _divided(matches, matching.result() if matching else [])


def _divided(asked: Mapping[str, tuple[Any, ...]], answers: list[Any]) -> dict[str, list[Any]]:
    """The answers by the name of the scheme that asked."""
    rest = iter(answers)
    return {name: [next(rest) for _ in own] for name, own in asked.items()}
