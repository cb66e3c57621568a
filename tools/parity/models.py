"""A recorded run of a whole Co-DETR against ours."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from omegaconf import DictConfig
from torch import Tensor

from codetr.checkpoints.official import convert_official
from codetr.checkpoints.renaming import Conversion
from tools.parity.case import Case, load_case
from tools.parity.inference import evaluation_values
from tools.parity.recorded import Recorded
from tools.parity.step import Step, frozen_row, gradient_rows, training_step
from tools.parity.step_details import detail_rows
from tools.parity.table import EXACT, Row, Tolerance, compare
from tools.parity.training import official_losses, training_values, without_randomness


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """Of arrays, of those in pixels, of losses, of RoI losses and of gradient norms."""

    arrays: Tolerance
    pixels: Tolerance
    losses: Tolerance
    roi_losses: Tolerance
    gradients: Tolerance


FLOAT64 = Tolerances(
    arrays=Tolerance(absolute=1e-5, relative=1e-5),
    pixels=Tolerance(absolute=1e-3),
    losses=Tolerance(absolute=1e-8, relative=1e-6),
    roi_losses=Tolerance(absolute=1e-8, relative=1e-6),
    gradients=Tolerance(absolute=1e-9, relative=1e-5),
)
FLOAT32 = Tolerances(
    arrays=Tolerance(absolute=2e-4, relative=2e-4),
    pixels=Tolerance(absolute=1e-1),
    losses=Tolerance(absolute=1e-6, relative=1e-4),
    roi_losses=Tolerance(absolute=1e-6, relative=5e-3),
    gradients=Tolerance(absolute=1e-6, relative=1e-2),
)

INTEGERS = (
    *("_idx", "_labels", "_label", "_indices", "mask", "_packed", "_weights"),
    *("_level", "_assigned_gt", "_index", "_window", "mask_targets", "_gt"),
)
PIXELS = ("_boxes_scores", "_proposals", "_rois", "_pos_anchor", "_pos_target")
PASTED = ("_bits", "_area")
FEW_PIXELS = Tolerance(absolute=2)
"""Of all pasted masks of an image: their probability may lie that close to the threshold."""
DECIDED = re.compile(r"(det|rpn|roi_det|atss|atss_det)\d.*|roi_.*|aux.*")
"""Arrays that hang on decisions (which proposal, which sample), which rounding can change."""

PADDED = re.compile(r"(enc_map|rpn_|atss_|gt_roi).*|pos_plus_level_embed|memory")
"""Arrays that hold padded positions, or depend on them through a convolution."""

HEAD_LOSS = re.compile(r"loss_rpn_\w+|loss_[a-z]+[01]|.*_aux[01]")
"""Losses that depend on the auxiliary heads' maps."""


def check_model(recorded: Recorded, dtype: torch.dtype = torch.float64) -> list[Row]:
    """Every recorded quantity against ours.

    In float32 the query selection is given the recorded indices, since two proposals of nearly
    equal score may swap, and what hangs on further decisions of that kind (``DECIDED``) is left
    out of the arrays. Losses and gradient norms stay in, except where padded positions are
    chaotic (see ``_chaotic_padding``): there only the main branch can be compared.
    """
    case = load_case(recorded, _convert, dtype=dtype)
    tolerances = FLOAT64 if dtype == torch.float64 else FLOAT32
    rows = list(_inputs(case))
    with _selection(case, forced=dtype != torch.float64):
        rows += _arrays(case, evaluation_values(case), "eval/", tolerances)
        if recorded.losses:
            step = training_step(case, patches=without_randomness(case))
            values = training_values(case, step)
            rows += _arrays(case, values, "train/", tolerances)
            rows += _losses(case, step, tolerances)
            if dtype == torch.float64:  # in float32 counts hang on decisions
                own = {name.removeprefix("train/"): value for name, value in values.items()}
                rows += detail_rows(recorded, own, tolerances.losses)
            if not _chaotic_padding(case, tolerances):
                rows += _gradients(case, tolerances)
    return rows


def _convert(official: Mapping[str, Tensor], cfg: DictConfig) -> Conversion:
    return convert_official(official, tuple(cfg.aux_heads))


def _selection(case: Case, forced: bool) -> AbstractContextManager[Any]:
    """The query selection as it is, or one that returns the recorded indices."""
    if not forced:
        return nullcontext()
    indices = torch.from_numpy(case.recorded.arrays["eval/topk_indices"].astype("int64"))
    stage = case.detector.query_init.stage
    return mock.patch.object(stage, "select", return_value=indices)


def _inputs(case: Case) -> Iterator[Row]:
    pixels = case.batch.images.pixels.float().contiguous().numpy()
    if "in/image_crc32_f32" in case.recorded.arrays:
        stored = case.recorded.arrays["in/image_crc32_f32"].reshape(-1)
        yield compare("in/image_crc32_f32", [zlib.crc32(pixels.tobytes())], stored)


def _arrays(
    case: Case, values: Mapping[str, Tensor], prefix: str, tolerances: Tolerances
) -> list[Row]:
    chaotic, rows = _chaotic_padding(case, tolerances), []
    for name in case.recorded.arrays:
        short = name.removeprefix(prefix)
        left_out = tolerances is FLOAT32 and DECIDED.fullmatch(short)
        left_out = left_out or (chaotic and PADDED.fullmatch(short))
        if name.startswith(prefix) and name in values and not left_out:
            rows.append(case.recorded.row(name, values[name], _tolerance(short, tolerances)))
    return rows


def _tolerance(name: str, tolerances: Tolerances) -> Tolerance:
    if name.endswith(INTEGERS):
        return EXACT
    if name.endswith(PASTED):
        return FEW_PIXELS
    return tolerances.pixels if name.endswith(PIXELS) else tolerances.arrays


def _chaotic_padding(case: Case, tolerances: Tolerances) -> bool:
    """Whether float32 cannot be compared at padded positions.

    With a position offset the angle of a wholly padded row or column is about -3e6, of which
    float32 keeps no digit behind the point; padded positions reach the auxiliary heads.
    """
    padded = bool(case.batch.images.padding.any())
    return tolerances is FLOAT32 and padded and case.detector.encoder.offset != 0


def _losses(case: Case, step: Step, tolerances: Tolerances) -> list[Row]:
    recorded = {name: v for name, v in case.recorded.losses["losses"].items() if "loss" in name}
    chaotic = _chaotic_padding(case, tolerances)
    if chaotic:
        recorded = {name: v for name, v in recorded.items() if not HEAD_LOSS.fullmatch(name)}
    ours = official_losses(step)
    rows = [
        compare(
            name,
            ours.get(name, float("nan")),
            sum(value) if isinstance(value, list) else value,
            tolerances.roi_losses if name.endswith("0") else tolerances.losses,
        )
        for name, value in recorded.items()
    ]
    if chaotic:
        return rows
    extra = set(ours) - set(recorded)
    rows.append(compare("losses that only we have", len(extra), 0))
    total = case.recorded.losses["total"]
    rows.append(compare("total", step.total, total, tolerances.losses))
    return rows


def _gradients(case: Case, tolerances: Tolerances) -> Iterator[Row]:
    losses = case.recorded.losses
    norms = {name: value for name, value in losses["grad_norms"].items() if value is not None}
    everything = (losses["total_grad_norm"], tolerances.gradients)
    yield from gradient_rows(case, norms, everything, tolerances.gradients)
    yield frozen_row(case, losses.get("frozen", ()))
