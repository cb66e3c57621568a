"""Constraints between settings. Each function returns an error message, or None if it holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

Relation = Callable[[DictConfig], str | None]

FURTHER_QUERIES = frozenset({"Collaborative", "Denoising", "Group", "Hybrid"})
"""Schemes that train only query groups of their own, not the main queries."""
NORM_GROUPS = 32


def at(cfg: DictConfig, key: str) -> Any:
    """A value of the configuration; None if the key does not exist or its value is missing."""
    return OmegaConf.select(cfg, key, default=None, throw_on_missing=False)


def main_queries_are_trained(cfg: DictConfig) -> str | None:
    """At least one scheme trains the main queries."""
    schemes = at(cfg, "scheme") or {}
    classes = {str(at(cfg, f"scheme.{name}._target_")).rpartition(".")[2] for name in schemes}
    if classes - FURTHER_QUERIES:
        return None
    return (
        f"scheme=[{','.join(schemes)}] does not train the main queries, which are all that is "
        f"deployed: give scheme=[{','.join(['one_to_one', *schemes])}]"
    )


def heads_divide_the_width(cfg: DictConfig) -> str | None:
    """``model.dim`` is divisible by the number of attention heads."""
    dim, heads = at(cfg, "model.dim"), at(cfg, "model.heads")
    if dim is None or heads is None or dim % heads == 0:
        return None
    return f"model.heads={heads} does not divide model.dim={dim}: change one of them"


def norm_groups_divide_the_width(cfg: DictConfig) -> str | None:
    """``model.dim`` is divisible by the 32 groups of the norms in neck and auxiliary heads."""
    dim = at(cfg, "model.dim")
    if dim is None or dim % NORM_GROUPS == 0:
        return None
    return f"model.dim={dim}: give a multiple of {NORM_GROUPS}, which the group norms divide it by"


def checkpointed_layers_exist(cfg: DictConfig) -> str | None:
    """Activation checkpointing applies to at most all encoder layers."""
    checkpointed, layers = at(cfg, "model.checkpointed"), at(cfg, "model.encoder_layers")
    if checkpointed is None or layers is None or checkpointed <= layers:
        return None
    return (
        f"model.checkpointed={checkpointed}, but model.encoder_layers={layers}: checkpoint at most "
        "all of them"
    )


def levels_are_those_of_the_neck(cfg: DictConfig) -> str | None:
    """``model.levels`` is the number of feature maps that backbone and neck return."""
    maps, levels = number_of_maps(cfg), at(cfg, "model.levels")
    if maps is None or levels is None or maps == levels:
        return None
    return (
        f"model.levels={levels}, but backbone and neck give {maps} maps: set model.levels={maps}, "
        "or change model.backbone.out_indices"
    )


def number_of_maps(cfg: DictConfig) -> int | None:
    """The number of feature maps that backbone and neck return; None where it is not known."""
    neck = str(at(cfg, "model.neck._target_")).rpartition(".")[2]
    if neck == "SimpleFeaturePyramid":
        return 5
    indices, extra = at(cfg, "model.backbone.out_indices"), at(cfg, "model.neck.extra")
    return None if neck != "ChannelMapper" or indices is None else len(indices) + (extra or 0)


def auxiliary_heads_see_the_maps_made_for_them(cfg: DictConfig) -> str | None:
    """``model.aux_levels`` counts the encoder's levels and those that the adapter adds: one coarser
    level by default.
    """
    levels, own = at(cfg, "model.levels"), at(cfg, "model.aux_levels")
    heads = at(cfg, "scheme.collaborative.heads")
    parts = [at(cfg, f"supervision.adapter.{name}") for name in ("finer", "coarser")]
    more = 1 if parts == [None, None] else sum(part or 0 for part in parts)
    if not heads or levels is None or own is None or own == levels + more:
        return None
    return (
        f"model.aux_levels={own}, but the auxiliary heads see {more} levels more than "
        f"model.levels={levels}: set model.aux_levels={levels + more}"
    )


def milestones_lie_within_the_schedule(cfg: DictConfig) -> str | None:
    """All milestones are within the training epochs."""
    milestones, epochs = at(cfg, "schedule.milestones"), at(cfg, "schedule.epochs")
    if not milestones or not isinstance(epochs, int) or max(milestones) <= epochs:
        return None
    share = max(epochs - 1, 1) / max(milestones)
    fitting = sorted({max(1, int(share * milestone)) for milestone in milestones})
    return (
        f"schedule.milestones={list(milestones)} with schedule.epochs={epochs}: give ascending "
        f"epochs within the schedule, such as schedule.milestones=[{','.join(map(str, fitting))}]"
    )


def batches_are_accumulated_to_a_number_of_images(cfg: DictConfig) -> str | None:
    """Accumulation is not set directly: it is computed from ``trainer.effective_batch``."""
    key = "trainer.accumulate_grad_batches"
    if at(cfg, key) is None:
        return None
    return (
        f"{key}={at(cfg, key)}: follows from the images per optimiser step: give "
        "trainer.effective_batch=N instead, N images of all accumulated batches and devices"
    )


def bounds_are_in_order(cfg: DictConfig) -> str | None:
    """Lower bounds do not exceed upper ones."""
    pairs = (
        ("scheme.collaborative.min_queries", "scheme.collaborative.max_queries"),
        ("schedule.epochs.at_least", "schedule.epochs.at_most"),
    )
    for low, high in pairs:
        least, most = at(cfg, low), at(cfg, high)
        if least is not None and most is not None and least > most:
            return f"{low}={least} exceeds {high}={most}: swap or change them"
    return None


def the_best_is_the_highest(cfg: DictConfig) -> str | None:
    """The mode of a monitor is max for validation metrics and min for losses."""
    for name in ("checkpointing.best", "callbacks.early_stopping"):
        monitor, mode = at(cfg, f"{name}.monitor"), at(cfg, f"{name}.mode")
        right = "max" if str(monitor).startswith("val/") else "min"
        if monitor is not None and mode is not None and mode != right:
            return f"{name}.mode={mode} would keep the worst {monitor}: set {name}.mode={right}"
    return None


def teachers_have_files(cfg: DictConfig) -> str | None:
    """The scheme ``teacher`` needs teacher boxes in ``data.teachers``."""
    targets = {str(at(cfg, f"scheme.{name}._target_")) for name in at(cfg, "scheme") or {}}
    taught = any(target.endswith(".Teacher") for target in targets)
    if not taught or at(cfg, "data.teachers"):
        return None
    return "scheme=teacher without teachers: give data.teachers=[FILE.json,...]"


def sharded_weights_keep_their_format(cfg: DictConfig) -> str | None:
    """Sharded weights are neither compiled nor converted to channels_last."""
    if not str(at(cfg, "trainer.strategy._target_")).endswith(".ShardedStrategy"):
        return None
    if at(cfg, "trainer.compile"):
        return (
            f"trainer.compile={list(cfg.trainer.compile)}: is not supported with trainer=fsdp, "
            "which shards the weights: leave it out"
        )
    if at(cfg, "trainer.channels_last") in (True, "auto"):
        return (
            f"trainer.channels_last={cfg.trainer.channels_last}: is not supported with "
            "trainer=fsdp, which shards the weights: set it to false"
        )
    return None


MODEL_RELATIONS: Sequence[Relation] = (
    main_queries_are_trained,
    heads_divide_the_width,
    norm_groups_divide_the_width,
    levels_are_those_of_the_neck,
    auxiliary_heads_see_the_maps_made_for_them,
)
"""Relations between the settings of a model and its schemes."""
RELATIONS: Sequence[Relation] = (
    *MODEL_RELATIONS,
    checkpointed_layers_exist,
    milestones_lie_within_the_schedule,
    batches_are_accumulated_to_a_number_of_images,
    bounds_are_in_order,
    the_best_is_the_highest,
    teachers_have_files,
    sharded_weights_keep_their_format,
)
