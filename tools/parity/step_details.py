"""What a record says of a training step beside its arrays: counts, and losses before weighting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from tools.parity.recorded import Recorded
from tools.parity.table import Row, Tolerance, compare

Values = Mapping[str, Tensor]

COUNTS: dict[str, Callable[[Values, int], Sequence[int]]] = {
    "pos": lambda values, length: values["pos"].tolist(),
    "neg": lambda values, length: values["neg"].tolist(),
    "level": lambda values, length: _per_level(values, length),
    "mask_pos_per_level": lambda values, length: _per_level(values, length),
    "mask_target_ones": lambda values, length: [int(values["mask_targets"].sum())],
    "roi_pos": lambda values, length: values["roi_pos"].tolist(),
    "roi_neg": lambda values, length: values["roi_neg"].tolist(),
    "aux_num": lambda values, length: [values[f"aux{i}_coords"].shape[1] for i in range(length)],
    "atss_pos": lambda values, length: [len(values[f"atss{b}_pos_idx"]) for b in range(length)],
}
"""By name in losses.json, from the values of the step and how many numbers there are."""


def detail_rows(recorded: Recorded, values: Values, losses: Tolerance) -> Iterator[Row]:
    """The recorded counts and losses of stages against ours; ``values`` of a training step by
    official name, without a prefix.
    """
    for name, official in recorded.losses.get("counts", {}).items():
        if name in COUNTS:
            wanted = official if isinstance(official, list) else [official]
            yield compare(f"counts/{name}", COUNTS[name](values, len(wanted)), wanted)
    if "stage_losses_unweighted" in recorded.losses:
        official = recorded.losses["stage_losses_unweighted"]
        yield compare("loss of stages", values["stage_losses"].detach(), official, losses)


def _per_level(values: Values, length: int) -> list[int]:
    levels: list[int] = torch.bincount(values["mask_level"], minlength=length).tolist()
    return levels
