"""The configuration that a checkpoint is evaluated with: its run's, changed by the user's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from codetr.checkpoints.files import RunRecord
from codetr.checkpoints.plain import plain
from codetr.checkpoints.trusted import require_trusted
from codetr.errors import UserError
from codetr.models.detectors.protocol import MAIN
from codetr.overrides import is_within, key_of
from codetr.settings.check import RECORD_GROUPS, instead, record_keys, require_taken
from codetr.settings.rules import is_own


def with_run(cfg: DictConfig, record: RunRecord, given: Sequence[str] = ()) -> DictConfig:
    """The run's configuration with the choices of ``cfg``: groups for which it has an option, and
    single settings of the others (``RECORD_GROUPS``) that are not null, or were set to null by an
    override of ``given``.

    Normalisation and padding stay those of the run, since they depend on the weights, not on the
    data. Raises UserError for a setting that nothing reads.
    """
    record.require_preprocessing(cfg.checkpoint)
    for keys in (("model", "detector", "backbone"), ("evaluation", "postprocess")):
        record.part(cfg.checkpoint, *keys)
    source = record.part(cfg.checkpoint, "data", "source")
    full = OmegaConf.create(dict(record.config))
    if "num_train" in source and source["num_train"] is None:
        del full.data.source["num_train"]  # earlier runs on data=custom have it, without effect
    given_keys = record_keys(cfg, given)
    whole = {key for key, mark in RECORD_GROUPS.items() if OmegaConf.select(cfg, mark) is not None}
    for key, value in cfg.items_ex(resolve=False):
        if value is not None and value != {} and (key not in RECORD_GROUPS or key in whole):
            full[key] = value
    if "data" in whole:
        _take_classes(full, record.config, given)
    if "augmentation" in whole:
        full.data.eval_augmentation = full.augmentation.eval
    single = OmegaConf.create({"augmentation": {"eval": full.data.eval_augmentation}})
    change_settings(single, _part(cfg, {"augmentation"} - whole), given_keys)
    full.data.eval_augmentation = single.augmentation.eval
    change_settings(full, _part(cfg, {"data", "evaluation"} - whole), given_keys)
    full.trainer.effective_batch = None
    if full.data.get("root") is None:
        raise UserError("data.root is not set: give data.root=FOLDER")
    for key in ("mean", "std", "size_divisor"):
        full.data[key] = record.preprocessing[key]
    return full


def as_built(
    full: DictConfig, cfg: DictConfig, given: Sequence[str] = (), schemes: bool = False
) -> DictConfig:
    """The parts of the full configuration ``full``, merged from a file and the user's ``cfg``, that
    objects are built from: resolved, plain and checked. ``schemes``: include those of the training,
    as is always done for an auxiliary branch.

    Raises UserError for classes that the file must not name, for missing parts, and for a setting
    of ``given`` that its part does not have.
    """
    keys = ["data", "evaluation", "trainer", "model.detector"]
    if schemes or cfg.evaluation.branch != MAIN:
        keys.append("scheme")
    parts: dict[str, Any] = {}
    try:
        for key in keys:
            group, _, inner = key.partition(".")
            value = OmegaConf.to_container(OmegaConf.select(full, key), resolve=True)
            parts[group] = {inner: value} if inner else value
        parts["model"]["num_queries"] = OmegaConf.select(full, "model.num_queries")
    except (OmegaConfBaseException, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{cfg.checkpoint}: gives no {key} to build ({reason})") from error
    checked = plain(parts, cfg.checkpoint, "configuration")
    if not cfg.trust:
        require_trusted(checked, cfg.checkpoint, cfg)
    require_taken(checked, map(_placed, record_keys(cfg, given)))
    return OmegaConf.create(checked)


def change_settings(
    part: DictConfig, changes: DictConfig, given_keys: Sequence[str], above: str = ""
) -> None:
    """Set in ``part`` each setting of ``changes`` that is not null or is in ``given_keys``. Raises
    UserError for one of ``given_keys`` that nothing reads.
    """
    for key, value in changes.items_ex(resolve=False):
        name = f"{above}.{key!s}".lstrip(".")
        held = part.get(key)
        inner = held if OmegaConf.is_dict(held) else OmegaConf.create({})
        if OmegaConf.is_dict(value) and (name not in given_keys or "_target_" in inner):
            change_settings(inner, value, given_keys, name)
            if inner:
                part[key] = inner
        elif name in given_keys or value is not None:
            if not (key in part or "_target_" in part or is_own(tuple(name.split(".")))):
                known = [f"{above}.{other!s}".lstrip(".") for other in part]
                raise UserError(f"{name}: nothing reads this setting: {instead(name, known)}")
            part[key] = value


def _take_classes(full: DictConfig, run: Mapping[str, Any], given: Sequence[str]) -> None:
    """Read other data with the classes that the run chose, unless the user chooses others."""
    chosen, recorded = full.data.get("classes"), run["data"].get("classes")
    if any(is_within(key_of(override), ["data.classes"]) for override in given):
        return
    if not any(v is not None for v in (chosen or {}).values()):
        full.data.pop("classes", None)
        if recorded:
            full.data.classes = recorded


def _part(cfg: DictConfig, groups: Iterable[str]) -> DictConfig:
    """Only these groups of ``cfg``, with unresolved interpolations."""
    return OmegaConf.masked_copy(cfg, [g for g in groups if cfg.get(g) is not None])


def _placed(name: str) -> str:
    """The key of a setting of ``RECORD_GROUPS`` in the result of ``as_built``."""
    old, new = "augmentation.eval", "data.eval_augmentation"
    return new + name.removeprefix(old) if is_within(name, [old]) else name
