"""How many parameters an experiment has, beside the official number."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from codetr.checkpoints.experiment import build_empty, compose_experiment
from codetr.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """``detector``: what is deployed; ``training``: what the schemes add; ``frozen_norm``: weights
    and biases of frozen batch norms, which are buffers here but parameters in mmdet.
    """

    detector: int
    training: int
    frozen_norm: int

    @property
    def total(self) -> int:
        """What mmdet would count."""
        return self.detector + self.training + self.frozen_norm


@dataclass(frozen=True, kw_only=True)
class OfficialCount:
    """The official number of ``parameters`` for a number of ``classes``."""

    classes: int
    parameters: int


def read_official_counts(path: str | Path) -> dict[str, OfficialCount]:
    """The table of official numbers, by experiment: ``{"NAME": {"classes": 80, "parameters": N}}``.

    Raises UserError for a file that cannot be read as such.
    """
    try:
        content = json.loads(Path(path).read_text())
        return {name: OfficialCount(**entry) for name, entry in content.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not a table of official parameter counts ({error}): give one like "
            "tests/golden/official_parameters.json"
        ) from error


def count_parameters(model: nn.ModuleDict) -> ParameterCount:
    """The parameters of ``model["detector"]`` and ``model["schemes"]``."""
    norms = [
        buffer.numel()
        for name, buffer in model["detector"].named_buffers()
        if name.rpartition(".")[2] in ("weight", "bias")
    ]
    return ParameterCount(
        detector=sum(p.numel() for p in model["detector"].parameters()),
        training=sum(p.numel() for p in model["schemes"].parameters()),
        frozen_norm=sum(norms),
    )


def count_experiments(
    names: Sequence[str], official: Mapping[str, OfficialCount]
) -> dict[str, ParameterCount]:
    """The parameters of conf/experiment/NAME.yaml for every name, built without memory for them.

    Raises UserError for a name without an official number.
    """
    for name in names:
        if name not in official:
            raise UserError(
                f"{name}: no official number of parameters: give one of {', '.join(official)}"
            )
    return {
        name: count_parameters(build_empty(compose_experiment(name, official[name].classes)))
        for name in names
    }


def parameter_table(
    counts: Mapping[str, ParameterCount], official: Mapping[str, OfficialCount]
) -> str:
    """A Markdown table of our numbers, the official ones and their difference."""
    lines = [
        "| experiment | classes | detector | training | frozen norm | sum | official | excess |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, count in counts.items():
        numbers = (
            official[name].classes,
            count.detector,
            count.training,
            count.frozen_norm,
            count.total,
            official[name].parameters,
            count.total - official[name].parameters,
        )
        lines.append(" | ".join([f"| `{name}`", *(f"{n:,}" for n in numbers)]) + " |")
    return "\n".join(lines)
