"""Our experiment with the weights and the inputs of a recorded run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from timm.layers import DropPath
from torch import Tensor, nn

from codetr.checkpoints.experiment import compose_experiment, without_initial_weights
from codetr.checkpoints.renaming import Conversion
from codetr.errors import UserError
from codetr.evaluation import Postprocess
from codetr.structures import Batch
from tools.parity.inputs import make_batch
from tools.parity.recorded import Recorded


@dataclass(frozen=True, kw_only=True)
class Case:
    """``detector``, ``schemes`` and ``batch`` in one precision, ready to run. ``conversion`` maps
    official parameter names to ours and holds no weights.

    The checks use internals of both models, beyond their protocols.
    """

    recorded: Recorded
    cfg: DictConfig
    detector: Any
    schemes: Any
    conversion: Conversion
    batch: Batch

    @property
    def root(self) -> nn.ModuleDict:
        """Detector and schemes; its parameters are named as in a checkpoint."""
        return nn.ModuleDict({"detector": self.detector, "schemes": self.schemes})

    @property
    def postprocess(self) -> Postprocess:
        """The postprocessing of the experiment's evaluation."""
        made: Postprocess = instantiate(self.cfg.evaluation.postprocess)
        return made

    @property
    def heads(self) -> dict[str, nn.Module]:
        """The auxiliary heads by name, in the official order."""
        if "collaborative" not in self.schemes:
            return {}
        return dict(self.schemes["collaborative"].heads.items())

    def own_names(self, official: str) -> list[str] | None:
        """Our parameters that hold an official one. Empty if the conversion drops it, None if no
        rule matches it.
        """
        short = self.recorded.short(official)
        if short in self.conversion.dropped:
            return []
        names = self.conversion.used.get(short)
        return None if names is None else names.split(", ")


Convert = Callable[[Mapping[str, Tensor], DictConfig], Conversion]
"""Renames an official state dict for an experiment."""


def load_case(
    recorded: Recorded,
    convert: Convert,
    overrides: Sequence[str] = (),
    dtype: torch.dtype = torch.float64,
) -> Case:
    """Build the experiment at full size and load the official state dict strictly, with all dropout
    and stochastic depth off, as in the recorded runs. ``overrides`` as for train.py.

    Raises UserError if there is no such experiment, or if a key is left over or missing.
    """
    name = recorded.experiment
    cfg = compose_experiment(name, recorded.num_classes, overrides)
    schemes = nn.ModuleDict({key: instantiate(part) for key, part in cfg.scheme.items()})
    detector = instantiate(without_initial_weights(cfg.model.detector))
    conversion = convert(recorded.state(), cfg)
    if conversion.unused:
        raise UserError(f"{recorded.folder}: no rule knows {', '.join(conversion.unused[:5])}")
    root = nn.ModuleDict({"detector": detector, "schemes": schemes})
    answer = root.load_state_dict(conversion.state, strict=False)
    if answer.missing_keys or answer.unexpected_keys:
        raise UserError(
            f"{recorded.folder}: does not fit {name}: missing {answer.missing_keys[:5]}, "
            f"unexpected {answer.unexpected_keys[:5]}"
        )
    for module in root.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0  # type: ignore[assignment]
    root.to(dtype)
    lsj = recorded.of_co_detr and cfg.augmentation.eval._target_.endswith("LsjEval")
    return Case(
        recorded=recorded,
        cfg=cfg,
        detector=detector,
        schemes=schemes,
        conversion=replace(conversion, state={}),
        batch=make_batch(recorded.inputs(), dtype, whole_canvas=lsj),
    )
