"""Co-DETR.

In float32 the query selection is given the recorded indices, since two proposals of nearly equal
score may swap, and whatever depends on further such decisions is not compared. Losses and gradient
norms are compared unless padded positions are chaotic; then only the main branch is. (With a
position offset the angle of a fully padded row or column is about -3e6, of which float32 keeps no
fractional digit, and padded positions reach the auxiliary heads.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from omegaconf import DictConfig
from torch import Tensor

from codetr.checkpoints.official import convert_official
from codetr.checkpoints.renaming import Conversion
from tools.parity.case import Case
from tools.parity.detector import Family
from tools.parity.inference import evaluation_values
from tools.parity.loss_names import co_detr_loss
from tools.parity.step import Patches, Step, entered, recorded_selection
from tools.parity.table import EXACT, Tolerance, Tolerances
from tools.parity.training import training_values, without_randomness
from tools.parity.values import Values

PIXELS = (
    r"_(boxes_scores|proposals|rois|target_box|pred_box|query_coords)$"
    r"|_pos_(anchor|target|point|ltrb)$|^query/[ct]"
)
PASTED = r"_(bits|area)$"
FEW_PIXELS = Tolerance(absolute=2)
"""Pixels that may differ in all pasted masks of an image, because their probability is that close
to the threshold.
"""

FLOAT64 = Tolerances(
    arrays=Tolerance(absolute=1e-5, relative=1e-5),
    losses=Tolerance(relative=1e-6),
    gradients=Tolerance(absolute=1e-9, relative=1e-5),
    special={"_weights$": EXACT, PASTED: FEW_PIXELS, PIXELS: Tolerance(absolute=1e-3)},
)
"""Also for its heads alone."""
FLOAT32 = Tolerances(
    arrays=Tolerance(absolute=2e-4, relative=2e-4),
    losses=Tolerance(absolute=1e-6, relative=1e-4),
    gradients=Tolerance(absolute=1e-6, relative=1e-2),
    special={
        "_weights$": EXACT,
        PASTED: FEW_PIXELS,
        PIXELS: Tolerance(absolute=1e-1),
        "loss.*0$": Tolerance(absolute=1e-6, relative=5e-3),  # of regions
    },
)

DECIDED = re.compile(r"(eval|train)/((det|rpn|roi_det|atss|atss_det)\d|roi_|aux).*|counts/.*")
"""Rows that depend on discrete decisions (which proposal, which sample) that rounding can change.
"""

PADDED = re.compile(
    r"(eval|train)/((enc_map|rpn_|atss_|gt_roi).*|pos_plus_level_embed|memory)"
    r"|loss_rpn_\w+|loss_[a-z]+[01]|.*_aux[01]|grad .*|frozen .*|losses that .*|total"
)
"""Rows about padded positions, or that depend on them through a convolution."""


def co_detr(dtype: torch.dtype) -> Family:
    """Compares everything that is reproducible in ``dtype``."""
    exact = dtype == torch.float64

    def patches(case: Case) -> Patches:
        forced = [] if exact else [recorded_selection(case, "eval/topk_indices")]
        return [*without_randomness(case), *forced]

    def values(case: Case, step: Step) -> Values:
        with entered(patches(case)):
            return training_values(case, step) | evaluation_values(case)

    def compared(case: Case, quantity: str) -> bool:
        chaotic = bool(case.batch.images.padding.any()) and case.detector.encoder.offset != 0
        decided, padded = DECIDED.fullmatch(quantity), PADDED.fullmatch(quantity)
        return exact or not (decided or (chaotic and padded))

    return Family(
        convert=_convert,
        values=values,
        tolerances=FLOAT64 if exact else FLOAT32,
        patches=patches,
        loss_name=co_detr_loss,
        compared=compared,
    )


def _convert(official: Mapping[str, Tensor], cfg: DictConfig) -> Conversion:
    return convert_official(official, tuple(cfg.aux_heads))
