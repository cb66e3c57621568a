"""One auxiliary head alone against the recorded numbers of its official counterpart."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from codetr.loss_terms import Losses, total_loss
from codetr.structures import Batch, Images, Pyramid
from tools.parity.head_inputs import STRIDES, make_boxes, make_features
from tools.parity.head_kinds import Kind, kind_of
from tools.parity.inputs import targets_of
from tools.parity.recorded import Recorded
from tools.parity.rules import Array, make_tensor
from tools.parity.table import EXACT, Row, Tolerance, compare
from tools.parity.values import Values

ARRAYS = Tolerance(absolute=1e-5, relative=1e-5)
PIXELS = Tolerance(absolute=1e-3, relative=1e-5)
LOSSES = Tolerance(relative=1e-6)
GRADIENTS = Tolerance(absolute=1e-9, relative=1e-5)

IN_PIXELS = re.compile(
    r"_(anchor|target_box|point|ltrb|query_coords|proposals|pred_box)$|rois|query/[ct]"
)


def check_head(recorded: Recorded) -> list[Row]:
    """Everything recorded, in float64: inputs, raw outputs, assignments, detections,
    losses and gradients. A recorded quantity that ours does not have is a row that fails.

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
    return [
        *_input_rows(recorded, pyramid, truth),
        *_value_rows(recorded, kind.values(run)),
        *_loss_rows(recorded, run.output.losses, float(total.detach())),
        *_gradient_rows(recorded, kind, head, pyramid),
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
    """One row per recorded array, and the counts."""
    for name, stored in recorded.arrays.items():
        if name.startswith(("in/", "grad/")):
            continue
        if name not in values:
            lost = float("inf")
            yield Row(quantity=f"{name} (not ours)", absolute=lost, relative=lost, tolerance="",
                      ok=False)  # fmt: skip
        elif name.endswith("_boxes_scores"):
            yield from _detection_rows(name, values[name], stored)
        else:
            yield recorded.row(name, values[name], _tolerance(name, stored))
    counts = recorded.losses["counts"]
    if "gmm" in counts:
        counts = counts | {"gmm iterations": [fit["iterations"] for fit in counts["gmm"]]}
    for name in ("usable", "gmm iterations", "box_avg_factor"):
        if name in counts:
            ours = values[f"counts/{name}"]
            yield compare(f"counts/{name}", ours, counts[name], Tolerance(relative=1e-9))


def _detection_rows(name: str, ours: Tensor, stored: Array) -> Iterator[Row]:
    """Boxes and scores by themselves. A box without area that official voting turned into NaN
    stays in ours: only that it has no area is compared.
    """
    boxes = ours[:, :4].clone()
    if boxes.shape == stored[:, :4].shape:
        flat = (boxes[:, 2:] <= boxes[:, :2]).any(dim=1)
        boxes[flat & torch.from_numpy(np.isnan(stored[:, 0]))] = torch.nan
    yield compare(name.removesuffix("_scores"), boxes, stored[:, :4], PIXELS)
    yield compare(name.replace("_boxes", ""), ours[:, 4], stored[:, 4], ARRAYS)


def _tolerance(name: str, stored: Array) -> Tolerance:
    if stored.dtype.kind in "iu":
        return EXACT
    return PIXELS if IN_PIXELS.search(name) else ARRAYS


def _loss_rows(recorded: Recorded, losses: Losses, total: float) -> Iterator[Row]:
    """Official losses are weighted, some of them one per level."""
    for name, official in recorded.losses["losses"].items():
        if name.startswith("loss_"):
            term = losses[name.removeprefix("loss_")]
            ours = float(term.value.detach()) * term.weight
            yield compare(f"losses/{name}", ours, float(np.sum(official)), LOSSES)
    yield compare("losses/total", total, recorded.losses["total"], LOSSES)


def _gradient_rows(
    recorded: Recorded, kind: Kind, head: nn.Module, pyramid: Pyramid
) -> Iterator[Row]:
    parameters = dict(head.named_parameters())
    for key, official in recorded.losses["grad_norms"].items():
        gradient = parameters[kind.rename(key)].grad
        ours = float("nan") if gradient is None else float(gradient.norm())
        yield compare(f"gradient/{key}", ours, official, GRADIENTS)
    for level, features in enumerate(pyramid.maps):
        assert features.grad is not None
        official = recorded.losses["feature_grad_norms"][level]
        yield recorded.row(f"grad/feature{level}", features.grad, GRADIENTS)
        yield compare(f"gradient/feature{level}", features.grad.norm(), official, GRADIENTS)
