"""A recorded run of MS-DETR against ours: one training step, one evaluation, the matcher alone.

The official repetition in float64 keeps position codes and valid ratios in float32, so numbers
agree to about 1e-6, not to the last digits; at padded tokens, where a position's angle can be -3e6,
the memory is not compared. (Nothing reads it there.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from codetr.checkpoints.ms_detr import convert_ms_detr, rename
from codetr.structures import CROSS_ATTENTION, Batch
from tools.parity.detr_run import (
    NO_DROPOUT,
    Model,
    Step,
    best_detections,
    evaluated,
    gradient_rows,
    image_query_target,
    input_rows,
    load_model,
    loss_rows,
    parameter_rows,
    training_step,
)
from tools.parity.ms_losses import Answers, logged_errors, official_loss
from tools.parity.recorded_detr import RecordedDetr, make_batch
from tools.parity.table import EXACT, Row, Tolerance, compare
from tools.parity.top_k import FILE, check_matcher

ARRAYS = Tolerance(absolute=1e-5, relative=1e-5)
LOSSES = Tolerance(absolute=1e-8, relative=1e-6)
GRADIENTS = Tolerance(absolute=1e-9, relative=1e-4)

WHOLE_NUMBERS = ("topk_index", "match_")


def check_ms_detr(folder: Path) -> list[Row]:
    """Every recorded quantity against ours, in float64. A folder may record fewer than the
    published one.
    """
    recorded = RecordedDetr.load(folder)
    model = load_model(recorded, lambda state, _: convert_ms_detr(state), NO_DROPOUT)
    inputs = recorded.inputs()
    batch = make_batch(inputs)
    watched = {"stage": model.detector.query_init.stage}
    step = training_step(model, batch, watched, [_selection(recorded, model)])
    answers = _answers(model, batch, step)
    shown = {"encoder_memory": ~step.memory.padding[..., None]}
    rows = [
        *input_rows(recorded, inputs),
        *(
            recorded.row(name, value, _tolerance(name), shown.get(name))
            for name, value in _values(batch, step, answers).items()
            if name in recorded.arrays
        ),
    ]
    if recorded.losses:
        layers, logged = model.detector.num_layers, logged_errors(answers, batch)
        rows += loss_rows(recorded, step, lambda n: official_loss(n, layers), logged, LOSSES)
        double = recorded.losses.get("float64", recorded.losses)
        everything = (double["grad_norm_all"], GRADIENTS)
        rows += gradient_rows(recorded, model, double["grad_norms"], everything, GRADIENTS)
    rows += parameter_rows(recorded, model.root)
    rows += _frozen(recorded, model.root)
    limit = _flag(recorded, "--topk_eval", 100)
    rows.append(compare("max_detections", model.experiment.postprocess.max_detections, limit))
    last = evaluated(model, batch, _selection(recorded, model))
    rows += best_detections(recorded, last, batch, limit)
    if (folder / FILE).is_file():
        rows += check_matcher(folder, model.schemes["mixed"].assigner)
    return rows


def _tolerance(name: str) -> Tolerance:
    return EXACT if name.startswith(WHOLE_NUMBERS) else ARRAYS


def _selection(recorded: RecordedDetr, model: Model) -> AbstractContextManager[Any]:
    """Our selection of proposals; the recorded one where the folder says that scores are so near
    each other that the official one is another in float64.
    """
    said = recorded.losses.get("float32_vs_float64", {})
    if said.get("topk_order_same_in_float64", True):
        return nullcontext()
    indices = torch.from_numpy(recorded.arrays["topk_index"].astype(np.int64))
    return mock.patch.object(model.detector.query_init.stage, "select", return_value=indices)


@torch.no_grad()
def _values(batch: Batch, step: Step, answers: Answers) -> dict[str, Tensor]:
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
    for kind, (layers, pairs) in answers.items():
        if kind == "enc":
            values["match_enc"] = image_query_target(pairs[0], batch.targets)
            continue
        values[f"{kind}_boxes"] = torch.stack([layer.boxes for layer in layers])
        for i, (layer, own) in enumerate(zip(layers, pairs, strict=True)):
            values[f"{kind}_logits_l{i}"] = layer.logits
            values[f"match_{kind}_l{i}"] = image_query_target(own, batch.targets)
    return values


def _answers(model: Model, batch: Batch, step: Step) -> Answers:
    """Predictions and assignments of decoder layers, and of the encoder."""
    main = step.main
    one, mixed = model.schemes["one_to_one"], model.schemes["mixed"]
    assert main.proposals is not None
    many = mixed.predictions(main)
    return {
        "o2o": (main.layers, one.matcher(main.layers, batch.targets)),
        "o2m": (many, mixed.assigner(many, batch.targets)),
        "enc": ([main.proposals], one.proposal_matcher([main.proposals], batch.targets)),
    }


def _frozen(recorded: RecordedDetr, root: nn.Module) -> Iterator[Row]:
    trained = {name for name, p in root.named_parameters() if p.requires_grad}
    frozen = {rename(official) for official in recorded.keys.get("requires_grad_false", ())}
    yield compare("frozen parameters that we train", len(trained & frozen), 0)


def _flag(recorded: RecordedDetr, name: str, default: int) -> int:
    """A number among the official flags."""
    words = str(recorded.keys.get("official_flags", "")).split()
    return int(words[words.index(name) + 1]) if name in words else default
