"""Our experiment with the weights and the inputs of a recorded run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from timm.layers import DropPath
from torch import nn

from codetr.checkpoints.dialects import dialect_of
from codetr.checkpoints.experiment import compose_experiment, without_initial_weights
from codetr.checkpoints.official import convert_official
from codetr.checkpoints.renaming import Conversion
from codetr.errors import UserError
from codetr.evaluation import Postprocess
from codetr.structures import Batch, ImageInfo
from tools.parity.inputs import make_batch
from tools.parity.recorded import INFO, KEYS, Recorded


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
    def dtype(self) -> torch.dtype:
        """The precision of the run."""
        return self.batch.images.pixels.dtype

    @property
    def postprocess(self) -> Postprocess:
        """The postprocessing of the experiment's evaluation."""
        made: Postprocess = instantiate(self.cfg.evaluation.postprocess)
        return made

    @property
    def original_infos(self) -> tuple[ImageInfo, ...]:
        """``infos`` of the batch with the original sizes of the recorded run, if it has any."""
        return original_infos(self.recorded.info, self.batch.infos)

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


def load_case(recorded: Recorded, dtype: torch.dtype = torch.float64) -> Case:
    """Build the experiment at full size and load the official state dict strictly, with all dropout
    and stochastic depth off, as in the recorded runs.

    Raises UserError if there is no such experiment, or if a tensor is left over, missing or of
    another shape.
    """
    name = recorded.experiment
    cfg = compose_experiment(name, recorded.num_classes)
    schemes = nn.ModuleDict({key: instantiate(part) for key, part in cfg.scheme.items()})
    detector = instantiate(without_initial_weights(cfg.model.detector))
    conversion = _converted(recorded, cfg)
    root = nn.ModuleDict({"detector": detector, "schemes": schemes})
    own = root.state_dict()
    misfits = [
        f"{key} {tuple(value.shape)} against {tuple(own[key].shape) if key in own else 'none'}"
        for key, value in conversion.state.items()
        if key not in own or own[key].shape != value.shape
    ]
    misfits += [f"none against {key}" for key in own if key not in conversion.state]
    if misfits:
        raise UserError(
            f"{recorded.folder} does not fit {name}: {', '.join(misfits[:5])}: name the experiment "
            f"of the recorded run in {INFO}"
        )
    root.load_state_dict(conversion.state)
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


def _converted(recorded: Recorded, cfg: DictConfig) -> Conversion:
    """The official state dict under our names; Co-DETR may have any auxiliary heads."""
    official = recorded.state()
    dialect = dialect_of(official)
    if recorded.of_co_detr:
        conversion = convert_official(official, tuple(cfg.aux_heads))
    elif dialect is not None:
        conversion = dialect.convert(official, cfg)
    else:
        raise UserError(f"{recorded.folder / KEYS} holds no state dict of a known repository")
    if conversion.unused:
        raise UserError(f"{recorded.folder}: no rule knows {', '.join(conversion.unused[:5])}")
    return conversion


def original_infos(
    recorded: Mapping[str, Any], infos: tuple[ImageInfo, ...]
) -> tuple[ImageInfo, ...]:
    """``infos`` with the original sizes and scale factors in info.json, if it has any, or in its
    evaluation, which is an object, or a list with one object per image.
    """
    said = recorded.get("eval", {})
    if not isinstance(said, dict):
        said = {name: [image[name] for image in said] for name in said[0]} if said else {}
    said = {**recorded, **said}
    if "ori_shapes" not in said:
        return infos
    return tuple(
        replace(info, original_size=(height, width), scale=(factor[0], factor[1]))
        for info, (height, width), factor in zip(
            infos, said["ori_shapes"], said["scale_factor_f32"], strict=True
        )
    )
