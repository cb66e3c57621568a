"""Our experiment with the weights and the inputs of a recorded run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codetr.boxes import xyxy_to_cxcywh
from codetr.checkpoints.official import convert_official
from codetr.errors import UserError
from codetr.evaluation import Postprocess
from codetr.structures import Batch, ImageInfo, Images, Targets
from tools.parity.experiment import Experiment, build_experiment
from tools.parity.recorded import Recorded
from tools.parity.rules import make_inputs
from tools.parity.rules_masks import has_masks, make_masks


@dataclass(frozen=True, kw_only=True)
class Case:
    """``detector``, ``schemes`` and ``batch`` in one precision, ready to run.

    Both models are looked into, beyond what their protocols promise.
    """

    recorded: Recorded
    detector: Any
    schemes: Any
    postprocess: Postprocess
    batch: Batch

    @property
    def heads(self) -> dict[str, nn.Module]:
        """The auxiliary heads by name, in the order of their official numbers."""
        if "collaborative" not in self.schemes:
            return {}
        return dict(self.schemes["collaborative"].heads.items())


def load_case(recorded: Recorded, dtype: torch.dtype = torch.float64) -> Case:
    """Build the experiment at full size and load the official state dict into it, strictly.

    Raises UserError if a key is left over or missing, or has another shape.
    """
    experiment = build_experiment(recorded.experiment, recorded.num_classes)
    load_strictly(experiment, recorded.state(), str(recorded.folder))
    root = nn.ModuleDict({"detector": experiment.detector, "schemes": experiment.schemes})
    root.to(dtype)
    return Case(
        recorded=recorded,
        detector=experiment.detector,
        schemes=experiment.schemes,
        postprocess=experiment.postprocess,
        batch=make_batch(recorded, experiment.whole_canvas, dtype),
    )


def load_strictly(experiment: Experiment, official: dict[str, Tensor], source: str) -> None:
    """Convert and load; every official key must be used and every one of ours filled."""
    heads = tuple(experiment.heads)
    conversion = convert_official(official, heads)
    if conversion.unused:
        raise UserError(f"{source}: no rule knows {', '.join(conversion.unused[:5])}")
    root = nn.ModuleDict({"detector": experiment.detector, "schemes": experiment.schemes})
    answer = root.load_state_dict(conversion.state, strict=False)
    if answer.missing_keys or answer.unexpected_keys:
        raise UserError(
            f"{source}: missing {answer.missing_keys[:5]}, unexpected {answer.unexpected_keys[:5]}"
        )


def make_batch(recorded: Recorded, whole_canvas: bool, dtype: torch.dtype) -> Batch:
    """The recorded inputs. Under large-scale jitter (``whole_canvas``) the whole padded batch
    counts as image, as in the official code without an attention mask.
    """
    info = recorded.info
    pixels, boxes, labels = make_inputs(
        info["seeds"], info["sizes"], info["num_gts"], recorded.num_classes, info.get("keep")
    )
    own = torch.tensor(info["sizes"])
    sizes = torch.tensor(pixels.shape[2:]).expand_as(own) if whole_canvas else own
    masked = has_masks([key for key, _ in recorded.entries])
    masks = [_masks(b, s, o) if masked else None for b, s, o in zip(boxes, own, sizes, strict=True)]
    padding = torch.ones(len(sizes), *pixels.shape[2:], dtype=torch.bool)
    for mask, (height, width) in zip(padding, sizes.tolist(), strict=True):
        mask[:height, :width] = False
    return Batch(
        images=Images(
            pixels=torch.from_numpy(pixels).to(dtype),
            padding=padding,
            sizes=sizes,
            padded_sizes=sizes,
        ),
        targets=tuple(
            targets_of(*parts, dtype)
            for parts in zip(boxes, labels, sizes.flip(1), masks, strict=True)
        ),
        infos=tuple(
            ImageInfo(image_id=b, original_size=(int(h), int(w)), scale=(1.0, 1.0))
            for b, (h, w) in enumerate(info["sizes"])
        ),
    )


def _masks(boxes: Any, size: Tensor, canvas: Tensor) -> Tensor:
    """(N, H, W) of an image of ``size`` (2,) height, width, padded to ``canvas`` (2,)."""
    made = torch.from_numpy(make_masks(boxes, size.tolist()))
    bottom, right = (canvas - size).tolist()
    return F.pad(made, (0, right, 0, bottom))


def targets_of(
    boxes: Any, labels: Any, size: Tensor, masks: Tensor | None, dtype: torch.dtype
) -> Targets:
    """Arrays ``boxes`` (N, 4) xyxy px and ``labels`` (N,) of an image of ``size`` (2,) width and
    height, with ``masks`` (N, H, W).
    """
    size = size.to(dtype)
    relative = xyxy_to_cxcywh(torch.from_numpy(boxes).to(dtype)) / size.repeat(2)
    return Targets(
        boxes=relative,
        labels=torch.from_numpy(labels),
        weights=torch.ones(len(labels), dtype=dtype),
        size=size,
        masks=masks,
    )
