"""One of our experiments, composed and built without weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from codetr.checkpoints.experiment import compose_experiment, without_initial_weights
from codetr.evaluation import Postprocess


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """``whole_canvas``: the recipe counts all of a padded canvas as image (large-scale jitter)."""

    cfg: DictConfig
    detector: nn.Module
    schemes: nn.ModuleDict
    postprocess: Postprocess
    whole_canvas: bool

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the auxiliary heads."""
        return tuple(self.cfg.aux_heads)


def build_experiment(name: str, num_classes: int, overrides: Sequence[str] = ()) -> Experiment:
    """conf/experiment/``name``.yaml for ``num_classes`` classes, with random weights;
    ``overrides`` as for train.py.

    Raises UserError if there is no such experiment.
    """
    cfg = compose_experiment(name, num_classes, overrides)
    schemes = nn.ModuleDict({key: instantiate(part) for key, part in cfg.scheme.items()})
    return Experiment(
        cfg=cfg,
        detector=instantiate(without_initial_weights(cfg.model.detector)),
        schemes=schemes,
        postprocess=instantiate(cfg.evaluation.postprocess),
        whole_canvas=cfg.augmentation.eval._target_.endswith("LsjEval"),
    )
