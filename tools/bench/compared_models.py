"""Which models are compared: ours, and the same model of Hugging Face's transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from tools.bench import ours
from tools.bench.baselines import NO_TRANSFORMERS, has_transformers
from tools.bench.contestant import Build, Contestant
from tools.bench.measure import attempt, medians, ratio
from tools.bench.options import option
from tools.bench.report import Cell, Table
from tools.bench.workload import GIB, ModelOptions


@dataclass(frozen=True, kw_only=True)
class PairOptions(ModelOptions):
    """Options of benchmarks with transformers as the baseline."""

    experiment: str = option("co_dino_5scale_r50_1x_coco", "of conf/experiment, measured first")
    pair: str = option(
        "deformable_detr_two_stage_r50_1x_coco",
        "our experiment with the model that the baseline has; its settings are the baseline's",
    )
    baseline: bool = option(True, "also measure the pair and the baseline")


@dataclass(frozen=True, kw_only=True)
class ComparedModels:
    """``builds`` by name, ours first; ``pair``: the names of ours and the baseline to compare,
    None where there is no baseline; ``notes`` about the baseline.
    """

    builds: Mapping[str, Build]
    pair: tuple[str, str] | None
    notes: tuple[str, ...]


def choose_models(options: PairOptions) -> ComparedModels:
    """The experiment, and with ``baseline`` the pair of ours and transformers."""
    names = [options.experiment, *([options.pair] if options.baseline else [])]
    builds: dict[str, Build] = {
        name: partial(ours.from_experiment, name, options) for name in names
    }
    if not options.baseline:
        return ComparedModels(builds=builds, pair=None, notes=())
    if not has_transformers():
        return ComparedModels(builds=builds, pair=None, notes=(NO_TRANSFORMERS,))
    from tools.bench import hugging_face  # an optional extra, and seconds to import

    builds[hugging_face.NAME] = partial(hugging_face.from_experiment, options.pair, options)
    pair = (options.pair, hugging_face.NAME)
    return ComparedModels(builds=builds, pair=pair, notes=hugging_face.NOTES)


def ready(
    models: ComparedModels, run: Callable[[Contestant], object]
) -> tuple[list[Contestant], ComparedModels]:
    """All contestants, and the models without a baseline that cannot be built or ``run``."""
    made, notes = [], list(models.notes)
    for name, build in models.builds.items():
        if models.pair is not None and name == models.pair[1]:
            baseline = attempt(name, partial(_after_a_run, build, run), notes)
            if baseline is None:
                builds = {key: own for key, own in models.builds.items() if key != name}
                models = ComparedModels(builds=builds, pair=None, notes=tuple(notes))
                continue
            made.append(baseline)
        else:
            made.append(build())
    return made, models


def _after_a_run(build: Build, run: Callable[[Contestant], object]) -> Contestant:
    contestant = build()
    run(contestant)
    return contestant


def peaks(
    models: ComparedModels, measured: Callable[[Build], int]
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Bytes by name, and notes: on baselines that do not get that far."""
    found: dict[str, int] = {}
    notes: list[str] = []
    for name, build in models.builds.items():
        if models.pair is not None and name == models.pair[1]:
            peak = attempt(f"the memory of {name}", partial(measured, build), notes)
        else:
            peak = measured(build)
        if peak is not None:
            found[name] = peak
    return found, tuple(notes)


def comparison(
    title: str,
    unit: str,
    times: Mapping[str, Sequence[float]],
    peaks: Mapping[str, int],
    models: ComparedModels,
    batch: int,
    notes: tuple[str, ...],
) -> Table:
    """Median seconds per ``unit``, images per second and peak memory of every entrant, and the
    ratio of the pair: below 1 in time and memory where ours needs less.

    ``peaks`` in bytes, of those of which they were measured.
    """
    rows: dict[str, tuple[Cell, ...]] = {}
    for name, seconds in medians(times).items():
        peak = peaks[name] / GIB if name in peaks else ""
        rows[name] = (seconds, batch / seconds, peak)
    if models.pair is not None:
        mine, theirs = models.pair
        time = ratio(times, mine, theirs)
        memory = peaks[mine] / peaks[theirs] if {mine, theirs} <= peaks.keys() else ""
        rows["ours / transformers"] = (time, 1 / time, memory)
    columns = (f"seconds per {unit}", "images/s", "peak GiB")
    return Table(title, columns, rows, (*notes, *models.notes))
