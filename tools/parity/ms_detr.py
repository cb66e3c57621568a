"""MS-DETR."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from codetr.checkpoints.ms_detr import convert_ms_detr
from codetr.structures import CROSS_ATTENTION
from tools.parity.case import Case
from tools.parity.detector import NO_DROPOUT
from tools.parity.h_detr import h_family, two_stages
from tools.parity.measured import Measured, layered, matched
from tools.parity.step import Patches, Step, recorded_selection
from tools.parity.table import Row
from tools.parity.top_k import FILE, check_matcher
from tools.parity.values import layers


def _selection(case: Case) -> Patches:
    """Force the recorded selection of proposals if scores are so close that the official code
    selects others in float64.
    """
    said = case.recorded.losses.get("float32_vs_float64", {})
    same = said.get("topk_order_same_in_float64", True)
    return [] if same else [recorded_selection(case, "topk_index")]


def _values(case: Case, step: Step) -> dict[str, Tensor]:
    """Encoder, proposals and both sets of predictions, by recorded name."""
    main = step.main
    proposals: Any = main.proposals
    taps = main.taps[CROSS_ATTENTION]
    return {
        **two_stages(step),
        "enc_anchors": proposals.anchors,
        "init_reference": taps[0].anchors,
        "inter_references": torch.stack(
            [*(tap.anchors for tap in taps[1:]), main.layers[-1].boxes]
        ),
        **layers("o2o_", main.layers),
        **layers("o2m_", case.schemes["mixed"].predictions(main)),
    }


def _measured(case: Case, step: Step) -> Iterator[Measured]:
    """Both sets of decoder predictions, and the encoder's proposals."""
    one, mixed, targets = case.schemes["one_to_one"], case.schemes["mixed"], case.batch.targets
    yield from matched("one_to_one", one, step.main, targets, "match_o2o_l{}")
    many = mixed.predictions(step.main)
    yield from layered("mixed", many, mixed.assigner(many, targets), targets, "match_o2m_l{}")


def _further(case: Case, _: Step) -> Iterator[Row]:
    """The one-to-many matcher on its own."""
    if (case.recorded.folder / FILE).is_file():
        yield from check_matcher(case.recorded.folder, case.schemes["mixed"].assigner)


MS_DETR = h_family(
    convert=lambda state, _: convert_ms_detr(state),
    overrides=NO_DROPOUT,
    patches=_selection,
    values=_values,
    measured=_measured,
    further=_further,
)
