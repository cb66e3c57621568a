"""The configuration and the model that a checkpoint belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from codetr.checkpoints.files import RunRecord
from codetr.checkpoints.plain import plain
from codetr.classes import ClassList
from codetr.conf_folder import conf_folder
from codetr.errors import UserError
from codetr.moved_keys import require_present_keys
from codetr.overrides import readable
from codetr.typos import explain

CONF = conf_folder()


def compose_experiment(name: str, num_classes: int, overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration of ``train.py experiment=NAME OVERRIDES``.

    Raises UserError for an unknown experiment or an invalid override.
    """
    if not (CONF / "experiment" / f"{name}.yaml").is_file():
        known = ", ".join(sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")))
        raise UserError(f"{name}: no experiment of that name: give one of {known}")
    return compose_train([f"experiment={name}", f"num_classes={num_classes}", *overrides])


def compose_train(overrides: Sequence[str]) -> DictConfig:
    """The configuration of ``train.py OVERRIDES``, with the working folder as its run folder.

    Raises UserError for an invalid override.
    """
    require_present_keys(overrides)
    running = GlobalHydra.instance().hydra  # of a surrounding command, if any
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("train", ["paths.run_dir=.", *readable(overrides)])
    except HydraException as error:
        raise UserError(f"{' '.join(overrides)}: {explain(error, overrides)}") from error
    finally:
        if running is not None:
            GlobalHydra.instance().initialize(running)


def build_record(cfg: DictConfig, classes: ClassList) -> RunRecord:
    """The record that is stored in every checkpoint of a run of ``cfg``.

    Raises UserError for values that could not be read back: see ``plain``.
    """
    config: Any = plain(OmegaConf.to_container(cfg, resolve=True), "this run", "configuration")
    data = config["data"]
    preprocessing = {
        "mean": data["mean"],
        "std": data["std"],
        "size_divisor": data["size_divisor"],
        "resize": config["augmentation"]["eval"],
    }
    return RunRecord(classes=classes, preprocessing=preprocessing, config=config)


def without_initial_weights(detector: DictConfig) -> DictConfig:
    """A detector's configuration whose backbone does not load pretrained weights, for a model whose
    weights all come from a checkpoint.
    """
    changes: dict[str, Any] = {"pretrained": False, "weights": None}
    known = {key: value for key, value in changes.items() if key in detector.backbone}
    return OmegaConf.merge(detector, {"backbone": known})  # type: ignore[return-value]


def build_empty(cfg: DictConfig) -> nn.ModuleDict:
    """``detector`` and ``schemes`` of ``cfg`` on the meta device, for names and shapes."""
    with torch.device("meta"):
        detector = instantiate(without_initial_weights(cfg.model.detector))
        schemes = {name: instantiate(part) for name, part in cfg.scheme.items()}
    return nn.ModuleDict({"detector": detector, "schemes": nn.ModuleDict(schemes)})
