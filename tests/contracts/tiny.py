"""The smallest whole model, with any schemes and auxiliary heads of conf/."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from codetr.conf_folder import conf_folder
from codetr.loss_terms import total_loss
from codetr.structures import Batch, Images, Targets
from codetr.training.losses import training_losses

CONF = conf_folder()
NUM_CLASSES = 3
OVERRIDES = (
    "model.dim=32",
    "model.hidden=32",
    "model.decoder_layers=2",
    "model.num_queries=12",
    "supervision.denoising_queries=6",
    "supervision.positive_queries=10",
    f"num_classes={NUM_CLASSES}",
)


def options(group: str) -> list[str]:
    """The names of a group's files in conf/."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


OURS = ("finetune", "finetune_small")
"""Recipes for data of one's own."""


def published() -> list[str]:
    """The experiments that are rows of published tables: all but our own for fine-tuning."""
    return [name for name in options("experiment") if name not in OURS]


def composed(overrides: Sequence[str]) -> DictConfig:
    """The configuration of train.py under ``overrides``."""
    return deepcopy(_composed(tuple(overrides)))


@cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def build(schemes: Sequence[str], heads: Sequence[str], *more: str) -> tuple[nn.Module, nn.Module]:
    """A tiny detector and its schemes."""
    chosen = (f"scheme=[{','.join(schemes)}]", f"aux_heads=[{','.join(heads)}]")
    cfg = composed((*chosen, *OVERRIDES, *more))
    parts = nn.ModuleDict({name: instantiate(part) for name, part in cfg.scheme.items()})
    return instantiate(cfg.model.detector), parts


def batch(counts: Sequence[int], size: int = 64) -> Batch:
    """Random images (the last one narrower), image b with ``counts[b]`` boxes, and ellipses in them
    as masks.
    """
    generator = torch.Generator().manual_seed(1)
    sizes = torch.tensor([[size, size]] * len(counts))
    sizes[-1, 1] = size - 16
    padding = torch.zeros(len(counts), size, size, dtype=torch.bool)
    padding[-1, :, size - 16 :] = True
    images = Images(
        pixels=torch.randn(len(counts), 3, size, size, generator=generator),
        padding=padding,
        sizes=sizes,
        padded_sizes=sizes,
    )
    targets = []
    for count, own in zip(counts, sizes.flip(1), strict=True):
        low = torch.rand(count, 2, generator=generator) * 0.4 + 0.3
        extent = torch.rand(count, 2, generator=generator) * 0.3 + 0.1
        boxes = torch.cat([low, extent], dim=1)
        targets.append(
            Targets(
                boxes=boxes,
                labels=torch.randint(NUM_CLASSES, (count,), generator=generator),
                weights=torch.ones(count),
                size=own.float(),
                masks=ellipses(boxes, own),
            )
        )
    return Batch(images=images, targets=tuple(targets), teachers=(_followed(targets, generator),))


def ellipses(boxes: Tensor, size: Tensor) -> Tensor:
    """(N, H, W) uint8 of ``boxes`` (N, 4) cxcywh in [0, 1] of an image of ``size`` (2,), width and
    height.
    """
    width, height = size.tolist()
    x, y = (torch.arange(side) + 0.5 for side in (width, height))
    cx, cy, w, h = (boxes * size.repeat(2)).T[..., None, None]
    inside = ((x - cx) / (w / 2)) ** 2 + ((y[:, None] - cy) / (h / 2)) ** 2 <= 1
    return inside.to(torch.uint8)


def _followed(targets: Sequence[Targets], generator: torch.Generator) -> tuple[Targets, ...]:
    """A teacher that finds all boxes, a bit too large, with any scores."""
    return tuple(
        replace(
            t,
            boxes=torch.cat([t.boxes[:, :2], t.boxes[:, 2:] * 1.1], dim=1),
            weights=torch.rand(len(t), generator=generator),
        )
        for t in targets
    )


def backward(detector: nn.Module, schemes: nn.Module, data: Batch) -> Tensor:
    """The total loss, after its backward pass from clean gradients."""
    detector.zero_grad(set_to_none=True)
    schemes.zero_grad(set_to_none=True)
    total = total_loss(training_losses(detector, schemes, data))  # type: ignore[arg-type]
    total.backward()
    return total.detach()


def without_gradient(*modules: nn.Module) -> list[str]:
    """Names of trainable parameters that got no gradient, or one that is not finite."""
    return [
        name
        for module in modules
        for name, p in module.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())
    ]
