"""MS-DETR.

The official repetition in float64 keeps position codes and valid ratios in float32, so numbers
agree to about 1e-6, not to the last digits; at padded tokens, where a position's angle can be -3e6,
the memory is not compared. (Nothing reads it there.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from codetr.checkpoints.ms_detr import convert_ms_detr
from codetr.structures import CROSS_ATTENTION
from tools.parity.case import Case
from tools.parity.detr import NO_DROPOUT, Family
from tools.parity.measured import Measured, layered, pattern
from tools.parity.recorded import Recorded
from tools.parity.step import Step, frozen_row
from tools.parity.table import EXACT, Row, Tolerance
from tools.parity.top_k import FILE, check_matcher

ARRAYS = Tolerance(absolute=1e-5, relative=1e-5)
WHOLE_NUMBERS = ("topk_index", "match_")


def _selection(case: Case) -> list[AbstractContextManager[Any]]:
    """Our selection of proposals; the recorded one where the folder says that scores are so near
    each other that the official one is another in float64.
    """
    said = case.recorded.losses.get("float32_vs_float64", {})
    if said.get("topk_order_same_in_float64", True):
        return []
    indices = torch.from_numpy(case.recorded.arrays["topk_index"].astype(np.int64))
    return [mock.patch.object(case.detector.query_init.stage, "select", return_value=indices)]


def _values(case: Case, step: Step) -> dict[str, Tensor]:
    """Under their recorded names."""
    main = step.main
    proposals: Any = main.proposals
    taps = main.taps[CROSS_ATTENTION]
    values = {
        "encoder_memory": step.memory.tokens,
        "enc_logits_channel0": proposals.logits[..., 0],
        "enc_logits": proposals.logits,
        "enc_boxes": proposals.boxes,
        "enc_anchors": proposals.anchors,
        "topk_index": step.seen.outputs["stage"][0][1],
        "init_reference": taps[0].anchors,
        "inter_references": torch.stack(
            [*(tap.anchors for tap in taps[1:]), main.layers[-1].boxes]
        ),
    }
    many = case.schemes["mixed"].predictions(main)
    for kind, layers in (("o2o", main.layers), ("o2m", many)):
        values[f"{kind}_boxes"] = torch.stack([layer.boxes for layer in layers])
        values |= {f"{kind}_logits_l{i}": layer.logits for i, layer in enumerate(layers)}
    return values


def _measured(case: Case, step: Step) -> Iterator[Measured]:
    """Layers of the decoder, twice, and the encoder."""
    main, targets = step.main, case.batch.targets
    one, mixed = case.schemes["one_to_one"], case.schemes["mixed"]
    pairs = one.matcher(main.layers, targets)
    yield from layered("one_to_one", main.layers, pairs, targets, "match_o2o_l{}")
    many = mixed.predictions(main)
    yield from layered("mixed", many, mixed.assigner(many, targets), targets, "match_o2m_l{}")
    assert main.proposals is not None
    (own,) = one.proposal_matcher([main.proposals], targets)
    yield Measured(
        name=pattern("one_to_one", "encoder", len(main.layers)),
        match="match_enc",
        predictions=main.proposals,
        pairs=own,
        targets=targets,
    )


def _further(case: Case) -> Iterator[Row]:
    """Frozen parameters, and the matcher alone."""
    recorded = case.recorded
    yield frozen_row(case, recorded.keys.get("requires_grad_false", ()))
    if (recorded.folder / FILE).is_file():
        yield from check_matcher(recorded.folder, case.schemes["mixed"].assigner)


def _flag(recorded: Recorded, name: str, default: int) -> int:
    """A number among the official flags."""
    words = str(recorded.keys.get("official_flags", "")).split()
    return int(words[words.index(name) + 1]) if name in words else default


MS_DETR = Family(
    convert=lambda state, _: convert_ms_detr(state),
    overrides=NO_DROPOUT,
    watched=lambda detector: {"stage": detector.query_init.stage},
    patches=_selection,
    values=_values,
    measured=_measured,
    visible=("encoder_memory",),
    tolerance=lambda name: EXACT if name.startswith(WHOLE_NUMBERS) else ARRAYS,
    losses=Tolerance(absolute=1e-8, relative=1e-6),
    gradients=Tolerance(absolute=1e-9, relative=1e-4),
    limit=lambda recorded: _flag(recorded, "--topk_eval", 100),
    further=_further,
)
