"""What analyses of a sweep's checkpoints found, by setting and seed: small enough to be kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from codetr.errors import UserError
from codetr.json_text import parse_json
from tools.sweeps.estimates import Estimate, estimate, paired
from tools.sweeps.runs import read_run
from tools.sweeps.variants import label_of

SHOWN = {
    "encoder: area": "discriminability of the encoder: area",
    "decoder: area": "discriminability of the last cross-attention: area",
    "queries: all, positive: nearest %": "from positive queries to the nearest customised one, %",
    "queries: all, negative: nearest %": "from negative queries to the nearest customised one, %",
    "conflict: all, all, KL": "conflict of heads: mean KL",
}
"""The numbers of the table, and what they are called there."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """A ``value`` of one run: ``number`` is ``FOLDER: cells of its row, column``."""

    number: str
    variant: str
    seed: int
    value: float


def read_results(folder: Path) -> list[Look]:
    """All numbers that are no counts, of what ``scripts/analyse.py`` has written into ``folder``,
    whose name tells analyses apart. The runs of its checkpoints must still be there. Raises
    UserError where they are not.
    """
    found = []
    for file in sorted(folder.glob("*.json")):
        for source, row in _rows(file):
            run = read_run(source.resolve().parent)
            if run.seed is None:
                raise UserError(f"{source}: its run is no longer beside it: analyse it again")
            words = [v for k, v in row.items() if isinstance(v, str) and k != "checkpoint"]
            found += [
                Look(
                    number=f"{folder.name}: {', '.join([*words, column])}",
                    variant=label_of(run),
                    seed=run.seed,
                    value=round(value, 4),
                )
                for column, value in row.items()
                if isinstance(value, float)
            ]
    if not found:
        raise UserError(f"{folder}: holds no results of scripts/analyse.py: give its runs/NAME")
    return found


def _rows(file: Path) -> list[tuple[Path, Mapping[str, object]]]:
    """The rows of an analysis with their checkpoints. Raises UserError for another file."""
    content = parse_json(file.read_bytes(), str(file))
    try:
        rows = [dict(row) for row in content["rows"]]
        return [(Path(content["checkpoints"][row["checkpoint"]]), row) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file}: holds no results of scripts/analyse.py ({type(error).__name__}): write it "
            "again"
        ) from None


def merge_looks(earlier: Sequence[Look], later: Sequence[Look]) -> list[Look]:
    """Both; of what is in both, the later one."""
    found = {(look.number, look.variant, look.seed): look for look in (*earlier, *later)}
    return list(found.values())


def write_looks(looks: Sequence[Look], path: Path) -> None:
    """One line per number."""
    lines = ",\n".join("  " + json.dumps(asdict(look)) for look in looks)
    path.write_text(f'{{"looks": [\n{lines}\n]}}\n', encoding="utf-8")


def read_looks(path: Path) -> list[Look]:
    """What ``write_looks`` has written. Raises UserError for another file."""
    try:
        content = parse_json(path.read_bytes(), str(path))
        return [Look(**look) for look in content["looks"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: holds no analyses ({error}): delete it, and add them") from None


def looks_table(looks: Sequence[Look]) -> list[list[str]]:
    """A row per number, a column per variant: mean ± deviation (number of seeds), and how much the
    last variant is above the first that has it, by seed.
    """
    variants = sorted({look.variant for look in looks})
    rows = [["number", *variants, "last - first, by seed"]]
    for number, title in SHOWN.items():
        by_variant: dict[str, Mapping[int, float]] = {
            variant: {k.seed: k.value for k in looks if (k.number, k.variant) == (number, variant)}
            for variant in variants
        }
        there = [values for values in by_variant.values() if values]
        if not there:
            continue
        change = paired(there[0], there[-1]) if len(there) > 1 else None
        cells = [_cell(estimate(list(values.values()))) for values in by_variant.values()]
        rows.append([title, *cells, _change(change)])
    return rows


def _cell(found: Estimate | None) -> str:
    if found is None:
        return "-"
    spread = "" if found.deviation is None else f" ± {_short(found.deviation)}"
    return f"{_short(found.mean)}{spread} ({found.count})"


def _change(found: Estimate | None) -> str:
    if found is None:
        return "-"
    if found.interval is None:
        return f"{_short(found.mean, '+')} (one seed)"
    low, high = found.interval
    return f"{_short(found.mean, '+')} [{_short(low, '+')}, {_short(high, '+')}]"


def _short(value: float, sign: str = "") -> str:
    return f"{value:{sign}.3f}" if abs(value) < 10 else f"{value:{sign}.1f}"
