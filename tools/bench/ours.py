"""Our models, as contestants."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from codetr.checkpoints.experiment import (
    compose_experiment,
    compose_train,
    without_initial_weights,
)
from codetr.loss_terms import total_loss
from codetr.training.acceleration import accelerate
from codetr.training.losses import training_losses
from tools.bench.contestant import ASSIGNMENT, BACKWARD_BACKBONE, BACKWARD_ENCODER, create_state
from tools.bench.part_times import Border, Recorder, Watched, watch, watch_methods
from tools.bench.workload import CLASSES, ModelOptions, configure_process, make_batch


class Ours:
    """The detector, schemes, optimiser and postprocessing of a configuration of train.py, with
    random weights, accelerated as its ``trainer`` group says.
    """

    def __init__(self, name: str, cfg: DictConfig, options: ModelOptions) -> None:
        self.name, self.cfg = name, cfg
        configure_process(options)
        self.batch, self.autocast = make_batch(options), options.autocast
        torch.manual_seed(0)
        schemes = {key: instantiate(part) for key, part in cfg.scheme.items()}
        self.detector: nn.Module = instantiate(without_initial_weights(cfg.model.detector))
        self.schemes = nn.ModuleDict(schemes)
        self.modules: nn.Module = nn.ModuleDict(
            {"detector": self.detector, "schemes": self.schemes}
        )
        self.modules.to(options.torch_device)
        accelerate(self.detector, cfg.trainer, options.torch_device)
        build = instantiate(cfg.optimizer, _convert_="all")
        self.optimizer: torch.optim.Optimizer = build(
            self.modules.named_parameters(), options.batch
        )
        create_state(self.optimizer)
        self.postprocess = instantiate(cfg.evaluation.postprocess)

    def loss(self) -> Tensor:
        """See ``Contestant``."""
        self.modules.train()
        with self.autocast():
            losses = training_losses(self.detector, self.schemes, self.batch)  # type: ignore[arg-type]
            return total_loss(losses)

    def detect(self) -> Sequence[object]:
        """One ``Detections`` per image."""
        self.modules.eval()
        with torch.no_grad(), self.autocast():
            predictions = self.detector(self.batch.images)
        found: Sequence[object] = self.postprocess(
            predictions, self.batch.images.sizes, self.batch.infos
        )
        return found

    def watch(self, recorder: Recorder) -> None:
        """The detector's modules, the class and box layers, and what only training has."""
        watch(recorder, self._parts(), self._borders())
        for module in self.schemes.modules():
            if _assigns(module):
                watch_methods(recorder, ASSIGNMENT, module)
            for key, part in vars(module).items():
                if _assigns(part):
                    setattr(module, key, Watched(recorder, ASSIGNMENT, part))

    def _parts(self) -> Iterator[tuple[str, nn.Module]]:
        detector: Any = self.detector
        yield "backbone", detector.backbone
        yield "neck", detector.neck
        yield "encoder", detector.encoder
        yield "queries", detector.query_init
        yield "decoder", detector.decoder
        for layer in {*detector.head.classify, *detector.head.regress}:
            yield "class and box layers", layer
        for head in _auxiliary_heads(self.schemes):
            yield "auxiliary heads", head

    def _borders(self) -> Iterable[Border]:
        detector: Any = self.detector
        return (
            Border(BACKWARD_ENCODER, detector.encoder, lambda memory: [memory.tokens]),
            Border(BACKWARD_BACKBONE, detector.neck, lambda pyramid: pyramid.maps),
        )


def from_experiment(name: str, options: ModelOptions) -> Ours:
    """conf/experiment/``name``.yaml. Raises UserError if there is none."""
    return Ours(name, compose_experiment(name, CLASSES, options.overrides), options)


def from_overrides(name: str, overrides: tuple[str, ...], options: ModelOptions) -> Ours:
    """``train.py OVERRIDES``, called ``name``. Raises UserError where they do not fit."""
    given = [f"num_classes={CLASSES}", *overrides, *options.overrides]
    return Ours(name, compose_train(given), options)


def _auxiliary_heads(schemes: nn.ModuleDict) -> Iterable[nn.Module]:
    if "collaborative" not in schemes:
        return ()
    heads: Any = schemes["collaborative"].heads
    return heads.values()  # type: ignore[no-any-return]


def _assigns(part: object) -> bool:
    return type(part).__module__.startswith("codetr.supervision.assigners.")
