"""Compare a single auxiliary head with recorded numbers of its official counterpart."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import nn

from codetr.loss_terms import Losses, total_loss
from codetr.structures import Pyramid
from tools.parity.co_detr import FLOAT64
from tools.parity.head_inputs import make_pyramid
from tools.parity.head_kinds import kind_of
from tools.parity.inputs import make_batch
from tools.parity.recorded import Recorded
from tools.parity.step import count_rows, gradient_rows, loss_rows
from tools.parity.table import Row, compare
from tools.parity.values import Values


def check_head(recorded: Recorded) -> list[Row]:
    """Inputs, raw outputs, assignments, detections, losses and gradients, in float64.

    Raises UserError if the head is unknown.
    """
    kind = kind_of(recorded)
    head = kind.build(recorded.info).double()
    head.load_state_dict({kind.rename(k): v for k, v in recorded.state().items()}, strict=True)
    pyramid = make_pyramid(recorded.info["seeds"], recorded.info["sizes"])
    maps = [zlib.crc32(m.detach().float().numpy().tobytes()) for m in pyramid.maps]
    run = kind.run(head, pyramid, make_batch(recorded.inputs()))
    values = kind.values(run)
    return [
        *recorded.input_rows(),
        *recorded.rows({"in/feature_crc32_f32": maps}, FLOAT64),
        *_value_rows(recorded, values),
        *step_rows(recorded, head, run.output.losses, pyramid, lambda name: [kind.rename(name)]),
        *count_rows(recorded, values),
    ]


def step_rows(
    recorded: Recorded,
    head: nn.Module,
    losses: Losses,
    pyramid: Pyramid,
    names: Callable[[str], Sequence[str]],
) -> Iterator[Row]:
    """Losses, and gradients of the ``head`` and of its input maps (zero for maps that it does not
    read). ``names`` as for ``gradient_rows``.
    """
    total, official = total_loss(losses), recorded.step()
    total.backward()
    ours = {f"loss_{name}": term for name, term in losses.items()}
    yield from loss_rows(official, ours, float(total.detach()), FLOAT64)
    yield from gradient_rows(official, head, names, FLOAT64.gradients)
    for level, norm in enumerate(recorded.losses["feature_grad_norms"]):
        features = pyramid.maps[level]
        own = torch.zeros_like(features) if features.grad is None else features.grad
        if f"grad/feature{level}" in recorded.arrays:
            yield recorded.row(f"grad/feature{level}", own, FLOAT64.gradients)
        yield compare(f"grad norm of feature{level}", own.norm(), norm, FLOAT64.gradients)


def _value_rows(recorded: Recorded, values: Values) -> Iterator[Row]:
    """Official voting turns boxes without area into NaN, ours keeps them; there only the lack of
    area is compared.
    """
    for name, ours in values.items():
        stored = recorded.arrays.get(name)
        if name.endswith("_boxes_scores") and stored is not None and ours.shape == stored.shape:
            flat = (ours[:, 2:4] <= ours[:, :2]).any(dim=1)
            ours[flat & torch.from_numpy(np.isnan(stored[:, 0])), :4] = torch.nan
    return recorded.rows(values, FLOAT64)
