"""Runs that differ in their seed alone, taken together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from tools.sweeps.runs import Curve, Run, added

HEADS = "aux_heads"
SCHEMES = "scheme"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One setting of a sweep: ``position`` on the axis of what was swept, or None where that is no
    number; ``runs`` one per seed.
    """

    label: str
    position: float | None
    runs: tuple[Run, ...]

    def numbers(self, name: str) -> list[float]:
        """A number of every finished run."""
        found = [run.number(name) for run in self.runs]
        return [value for value in found if value is not None]

    def by_seed(self, name: str) -> dict[int, float]:
        """The same by seed; the mean of runs that have one seed."""
        found: dict[int, list[float]] = defaultdict(list)
        for run in self.runs:
            value = run.number(name)
            if run.seed is not None and value is not None:
                found[run.seed].append(value)
        return {seed: fmean(values) for seed, values in found.items()}

    def curves(self, name: str) -> list[Curve]:
        """The curve of every run that has it."""
        return [run.curves[name] for run in self.runs if name in run.curves]

    def loss(self, group: str) -> list[Curve]:
        """The raw terms ``loss/<group>/...`` of every run added up."""
        prefix = f"loss/{group}/"
        terms = [[c for n, c in run.curves.items() if n.startswith(prefix)] for run in self.runs]
        return [added(own) for own in terms if own]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """``axis`` says what was swept. Variants are in the order of their jobs."""

    axis: str
    variants: tuple[Variant, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """All of them."""
        return tuple(run for variant in self.variants for run in variant.runs)

    @property
    def numeric(self) -> bool:
        """Whether every variant has a position."""
        return all(variant.position is not None for variant in self.variants)


def group_runs(runs: Sequence[Run]) -> Sweep:
    """Runs by what was swept besides the seed."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[label_of(run)].append(run)
    axis, position = _axis(groups)
    return Sweep(
        axis=axis,
        variants=tuple(
            Variant(label=label, position=position(own[0]), runs=tuple(own))
            for label, own in groups.items()
        ),
    )


def label_of(run: Run) -> str:
    """What tells a run from those of other variants; its folder's name outside of sweeps."""
    if not run.swept:
        return run.folder.name
    parts = dict.fromkeys(_part(key, value, run) for key, value in run.swept.items())
    return ", ".join(parts)


def _of_heads(key: str) -> bool:
    """Whether it chooses auxiliary heads, such as aux_heads or aux_heads@aux_heads.atss_2."""
    return key.partition("@")[0] == HEADS


def _part(key: str, value: object, run: Run) -> str:
    if key == SCHEMES:
        return " + ".join(str(value).strip("[]").split(","))
    if not _of_heads(key):
        return f"{key.rpartition('.')[2]} = {value}"
    if run.heads is None:  # it failed before it wrote its configuration
        return f"heads {value}"
    return f"K = {len(run.heads)} ({', '.join(run.heads) or 'none'})"


def _axis(groups: dict[str, list[Run]]) -> tuple[str, Callable[[Run], float | None]]:
    firsts = [own[0] for own in groups.values()]
    keys = {key for run in firsts for key in run.swept}
    counts = [None if run.heads is None else len(run.heads) for run in firsts]
    if keys and all(map(_of_heads, keys)):
        if None not in counts and len(set(counts)) == len(counts):
            return "K, number of auxiliary heads", lambda run: float(len(run.heads or ()))
        return "auxiliary heads", lambda run: None
    if len(keys) == 1:
        (key,) = keys
        if all(isinstance(run.swept.get(key), int | float) for run in firsts):
            return key, lambda run: float(run.swept[key])
    names = ", ".join(sorted(key.rpartition(".")[2] for key in keys)) or "run"
    return names, lambda run: None


def loss_groups(sweep: Sweep) -> list[str]:
    """The parts of the logged losses, in order: ``<scheme>``, or ``<scheme>/<head>`` and
    ``<scheme>/positive_<head>`` for auxiliary heads.
    """
    heads = {head for run in sweep.runs for head in run.heads or ()}
    groups: dict[str, None] = {}
    for run in sweep.runs:
        for name in run.curves:
            parts = name.split("/")
            if parts[0] == "loss" and len(parts) > 3:
                own = parts[2].removeprefix("positive_") in heads
                groups["/".join(parts[1:3]) if own else parts[1]] = None
    return list(groups)
