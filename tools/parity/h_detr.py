"""What MS-DETR and Teach-DETR share: both are built on the code of H-Deformable-DETR.

Their recorded float64 runs keep position codes and valid ratios in float32, so numbers agree to
about 1e-6 only. At padded tokens, where a position's angle can be -3e6, the memory is not compared;
nothing reads it there.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from tools.parity.detector import Family
from tools.parity.step import Step
from tools.parity.table import Tolerance, Tolerances
from tools.parity.values import Values

h_family = partial(
    Family,
    watched=lambda detector: {"stage": detector.query_init.stage},
    visible=("encoder_memory",),
    tolerances=Tolerances(
        arrays=Tolerance(absolute=1e-5, relative=1e-5),
        losses=Tolerance(absolute=1e-8, relative=1e-6),
        gradients=Tolerance(absolute=1e-9, relative=5e-5),
    ),
)


def two_stages(step: Step) -> Values:
    """Encoder output, its proposals and the selected ones."""
    proposals: Any = step.main.proposals
    return {
        "encoder_memory": step.memory.tokens,
        "enc_logits_channel0": proposals.logits[..., 0],
        "enc_logits": proposals.logits,
        "enc_boxes": proposals.boxes,
        "topk_index": step.seen.outputs["stage"][0][1],
    }
