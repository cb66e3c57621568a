"""Faster training steps: compilation and the channels-last memory format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from codetr.errors import UserError
from codetr.models.backbones import TimmBackbone

PARTS: dict[str, Callable[[Any], list[nn.Module]]] = {
    "backbone": lambda detector: [detector.backbone],
    "encoder": lambda detector: list(detector.encoder.layers),
    "decoder": lambda detector: list(detector.decoder.layers),
}
"""The parts that can be compiled: the backbone as a whole, encoder and decoder layer by layer, so
that equal layers share compiled code.
"""


def accelerate(detector: nn.Module, trainer: DictConfig, device: torch.device) -> None:
    """Apply ``compile`` and ``channels_last`` of the ``trainer`` group, in place."""
    compile_parts(detector, trainer.compile)
    if wants_channels_last(detector, trainer.channels_last, device):
        use_channels_last(detector)


def compile_parts(detector: nn.Module, names: Sequence[str]) -> None:
    """Compile the named ``PARTS`` in place, which keeps the names of weights.

    Raises UserError for a name that is not one of them.
    """
    unknown = sorted(set(names) - set(PARTS))
    if unknown:
        raise UserError(
            f"trainer.compile={list(names)}: there is no part {', '.join(unknown)}: choose from "
            f"{', '.join(PARTS)}"
        )
    for name in names:
        for module in PARTS[name](detector):
            module.compile()


def wants_channels_last(detector: nn.Module, choice: bool | str, device: torch.device) -> bool:
    """Whether to use the channels-last memory format. ``auto``: on CUDA devices, for convolutional
    backbones, whose feature maps inherit the format of the input.

    Raises UserError for any other choice than true, false and auto.
    """
    if isinstance(choice, bool):
        return choice
    if choice != "auto":
        raise UserError(f"trainer.channels_last={choice}: choose true, false or auto")
    backbone = getattr(detector, "backbone", None)
    convolutional = isinstance(backbone, TimmBackbone) and not backbone.channels_last
    return device.type == "cuda" and convolutional


def use_channels_last(detector: nn.Module) -> None:
    """Pass images to the backbone in channels-last format, and store its convolution weights in it,
    so that they are not converted in every step.
    """
    backbone = detector.get_submodule("backbone")
    backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    backbone.register_forward_pre_hook(_channels_last)


def _channels_last(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    pixels, *others = inputs
    return (pixels.contiguous(memory_format=torch.channels_last), *others)
