"""A model with its batch, and what is measured of it: a training step, a detection, its memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from tools.bench.measure import peak_memory
from tools.bench.part_times import Recorder

REST = "losses and the rest"
"""The part of a forward pass in no named module."""
ASSIGNMENT = "assignment"
BACKWARD = "backward: losses, heads, decoder"
BACKWARD_ENCODER = "backward: encoder"
BACKWARD_BACKBONE = "backward: neck and backbone"
OPTIMIZER = "clipping and optimizer"

CLIP = 0.1
"""Largest norm of the gradients, as in the recipes."""

Build = Callable[[], "Contestant"]
"""Builds the model; must pickle."""


class Contestant(Protocol):
    """One of the models that are compared, on its device with its batch."""

    name: str
    modules: nn.Module
    optimizer: torch.optim.Optimizer

    def loss(self) -> Tensor:
        """The training loss of the batch, with a graph to differentiate."""
        ...

    def detect(self) -> object:
        """What is found in the batch's images, in their pixels."""
        ...

    def watch(self, recorder: Recorder) -> None:
        """From now on tell ``recorder`` where the time goes."""
        ...


class Silent:
    """Records nothing."""

    def start(self, name: str) -> None:
        """See ``Recorder``."""

    def stop(self) -> None:
        """See ``Recorder``."""


def training_step(contestant: Contestant, recorder: Recorder) -> None:
    """Forward, losses, backward, clipping and the optimiser's step."""
    recorder.start(REST)
    loss = contestant.loss()
    recorder.stop()
    recorder.start(BACKWARD)
    loss.backward()
    recorder.stop()
    recorder.start(OPTIMIZER)
    nn.utils.clip_grad_norm_(contestant.modules.parameters(), CLIP)
    contestant.optimizer.step()
    contestant.optimizer.zero_grad(set_to_none=True)
    recorder.stop()


def create_state(optimizer: torch.optim.Optimizer) -> None:
    """Create the optimiser's state, which its first step would do, by gradients of zero."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def training_memory(build: Build, device: torch.device) -> int:
    """Bytes at the peak of a training step: weights, optimiser, activations and gradients."""
    return peak_memory(_fresh_step, build, device=device)


def detection_memory(build: Build, device: torch.device) -> int:
    """Bytes at the peak of a detection, weights among them."""
    return peak_memory(_fresh_detection, build, device=device)


def _fresh_step(build: Build) -> Callable[[], object]:
    return lambda: training_step(build(), Silent())


def _fresh_detection(build: Build) -> Callable[[], object]:
    return lambda: build().detect()
