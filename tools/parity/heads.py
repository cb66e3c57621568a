"""One auxiliary head alone against the recorded numbers of its official counterpart."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codetr.loss_terms import total_loss
from codetr.structures import Batch, Images, Pyramid
from tools.parity.co_detr import FLOAT64
from tools.parity.head_inputs import STRIDES, make_boxes, make_features
from tools.parity.head_kinds import kind_of
from tools.parity.inputs import targets_of
from tools.parity.recorded import Recorded
from tools.parity.rules import Array, make_tensor
from tools.parity.step import count_rows, gradient_rows, loss_rows
from tools.parity.table import Row, compare
from tools.parity.values import Values


def check_head(recorded: Recorded) -> list[Row]:
    """Everything recorded, in float64: inputs, raw outputs, assignments, detections, losses and
    gradients.

    Raises UserError if the head is none of those known here.
    """
    kind = kind_of(recorded)
    head = kind.build(recorded.info).double()
    head.load_state_dict({kind.rename(k): v for k, v in _state(recorded).items()}, strict=True)
    pyramid, truth = _inputs(recorded.info)
    batch = _batch(recorded.info["sizes"], truth)
    run = kind.run(head, pyramid, batch)
    total = total_loss(run.output.losses)
    total.backward()
    official = recorded.step()
    values = kind.values(run)
    ours = {f"loss_{name}": term for name, term in run.output.losses.items()}
    return [
        *_input_rows(recorded, pyramid, truth),
        *_value_rows(recorded, values),
        *loss_rows(official, ours, float(total.detach()), FLOAT64),
        *count_rows(official, values),
        *gradient_rows(official, head, lambda name: [kind.rename(name)], FLOAT64.gradients),
        *feature_rows(recorded, pyramid),
    ]


def _state(recorded: Recorded) -> dict[str, Tensor]:
    """The official state dict, by rule; the constants in it are left out."""
    extra = recorded.info.get("weight_rule_overrides", {})
    biases = [(part, (mean, amplitude)) for part, mean, amplitude in extra.get("bias", ())]
    constants = tuple(extra.get("keep", ()))
    made = {
        key: make_tensor(key, shape, biases, extra.get("gain", ()))
        for key, shape in recorded.shapes.items()
        if not (constants and key.endswith(constants))
    }
    return {key: torch.from_numpy(v).double() for key, v in made.items() if v is not None}


def _inputs(info: dict[str, Any]) -> tuple[Pyramid, list[tuple[Array, Array]]]:
    """Maps that collect gradients, and each image's boxes and labels."""
    maps = make_features(info["seeds"], info["batch_input_shape"])
    pyramid = Pyramid(
        maps=tuple(torch.from_numpy(m).double().requires_grad_() for m in maps), strides=STRIDES
    )
    images = zip(info["seeds"], info["sizes"], info["keep"], strict=True)
    return pyramid, [make_boxes(*image) for image in images]


def _batch(sizes: list[list[int]], truth: list[tuple[Array, Array]]) -> Batch:
    """Images that count as padded to their own size; heads do not look at pixels."""
    valid = torch.tensor(sizes)
    images = Images(
        pixels=torch.zeros(len(sizes), 3, 1, 1),
        padding=torch.zeros(len(sizes), 1, 1, dtype=torch.bool),
        sizes=valid,
        padded_sizes=valid,
    )
    targets = tuple(
        targets_of(*parts, size) for parts, size in zip(truth, valid.flip(1), strict=True)
    )
    return Batch(images=images, targets=targets)


def _input_rows(
    recorded: Recorded, pyramid: Pyramid, truth: list[tuple[Array, Array]]
) -> Iterator[Row]:
    sums = [zlib.crc32(m.detach().float().numpy().tobytes()) for m in pyramid.maps]
    yield compare("in/feature_crc32_f32", sums, recorded.arrays["in/feature_crc32_f32"])
    for b, (boxes, labels) in enumerate(truth):
        yield compare(f"in/gt{b}_boxes", boxes, recorded.arrays[f"in/gt{b}_boxes"])
        yield compare(f"in/gt{b}_labels", labels, recorded.arrays[f"in/gt{b}_labels"])


def _value_rows(recorded: Recorded, values: Values) -> Iterator[Row]:
    """Boxes and scores of detections by themselves. A box without area that official voting turned
    into NaN stays in ours: only that it has no area is compared.
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


def feature_rows(recorded: Recorded, pyramid: Pyramid) -> Iterator[Row]:
    """Gradients of the maps that a head read, zeros where it read none."""
    for level, official in enumerate(recorded.losses["feature_grad_norms"]):
        features = pyramid.maps[level]
        own = torch.zeros_like(features) if features.grad is None else features.grad
        name = f"grad/feature{level}"
        if name in recorded.arrays:
            yield recorded.row(name, own, FLOAT64.gradients)
        yield compare(f"grad norm of feature{level}", own.norm(), official, FLOAT64.gradients)
