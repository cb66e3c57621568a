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
    """Detections' boxes and scores are separate rows. Official voting turns boxes without area into
    NaN, ours keeps them; there only the lack of area is compared.
    """
    found = {name: v for name, v in values.items() if name.endswith("_boxes_scores")}
    yield from recorded.rows({k: v for k, v in values.items() if k not in found}, FLOAT64)
    for name, ours in found.items():
        stored, boxes = recorded.arrays[name], ours[:, :4].clone()
        if ours.shape == stored.shape:
            flat = (boxes[:, 2:] <= boxes[:, :2]).any(dim=1)
            boxes[flat & torch.from_numpy(np.isnan(stored[:, 0]))] = torch.nan
        tolerance = FLOAT64.of_array(name, stored)
        yield compare(f"{name} (boxes)", boxes, stored[:, :4], tolerance)
        yield compare(f"{name} (scores)", ours[:, 4], stored[:, 4], FLOAT64.arrays)
