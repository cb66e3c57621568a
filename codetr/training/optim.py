"""The optimiser: AdamW over parameter groups defined by named rules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from codetr.errors import UserError

REST = "rest"
"""Name of the group of parameters that no rule matches."""

Rule = Mapping[str, Any]
"""``pattern`` (a regular expression searched in the parameter's name) and any of ``lr_mult``
(factor on the learning rate), ``weight_decay``, and ``lr_decay`` with ``depth``: layer-wise decay
by ``lr_decay ** (depth - n)``, n being the number that the pattern's group captures, 0 without a
group (Clark et al. 2020, "ELECTRA", section 3.1).
"""


def _checked(rules: Mapping[str, Rule | None]) -> dict[str, Rule]:
    """The rules that are not None. Raises UserError for wrong keys."""
    known = {"pattern", "lr_mult", "lr_decay", "depth", "weight_decay"}
    kept: dict[str, Rule] = {}
    for name, rule in rules.items():
        if rule is None:
            continue
        unknown = set(rule) - known
        if unknown or "pattern" not in rule or ("lr_decay" in rule) != ("depth" in rule):
            raise UserError(
                f"optimizer.rules.{name} has keys {sorted(rule)}: give pattern and any of "
                "lr_mult, weight_decay, and lr_decay with depth"
            )
        kept[name] = rule
    return kept


def _lr_factor(name: str, rule: Rule, match: re.Match[str]) -> tuple[str, float]:
    """The label of parameters that match rule ``name``, and the factor on their learning rate."""
    factor = rule.get("lr_mult", 1.0)
    if "lr_decay" not in rule:
        return name, factor
    layer = int(match.group(1)) if match.re.groups else 0
    if layer > rule["depth"]:
        raise UserError(
            f"optimizer.rules.{name}: depth={rule['depth']} but the pattern finds layer {layer}: "
            "set depth to the number of layers"
        )
    label = f"{name}_{layer}" if match.re.groups else name
    return label, factor * rule["lr_decay"] ** (rule["depth"] - layer)


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    lr: float,
    weight_decay: float,
    rules: Mapping[str, Rule | None],
    decay_vectors: bool = True,
) -> list[dict[str, Any]]:
    """One optimiser group per distinct pair of learning rate and weight decay.

    A parameter may match several rules: their ``lr_mult`` multiply, and the last ``weight_decay``
    applies. Groups with equal values are merged (fewer kernels), and their ``name`` joins the
    rules' names with ``+``; a rule with ``lr_decay`` appends the layer's number to its name. Frozen
    parameters are left out.

    Args:
        named_parameters: as returned by ``module.named_parameters()``.
        lr: learning rate of parameters that no rule matches.
        weight_decay: weight decay of parameters that no rule matches.
        rules: by name; see ``Rule``.
        decay_vectors: if False, parameters with one dimension (norms and biases) have no weight
            decay. Scalars keep theirs, as in the official ViT recipe.

    Raises UserError for a rule that matches no parameter or has fewer layers than the model.
    """
    rules = _checked(rules)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    matched: set[str] = set()
    for name, parameter in named_parameters:
        hits = {k: m for k, rule in rules.items() if (m := re.search(rule["pattern"], name))}
        matched.update(hits)
        if not parameter.requires_grad:
            continue
        rate, decay, labels = lr, weight_decay, []
        for key, match in hits.items():
            label, factor = _lr_factor(key, rules[key], match)
            rate *= factor
            decay = rules[key].get("weight_decay", decay)
            labels.append(label)
        label = "+".join(labels) or REST
        if not decay_vectors and parameter.ndim == 1 and decay != 0:
            decay, label = 0.0, f"{label}_no_decay"
        group = groups.setdefault(
            (rate, decay), {"params": [], "lr": rate, "weight_decay": decay, "names": []}
        )
        group["params"].append(parameter)
        if label not in group["names"]:
            group["names"].append(label)
    for key in rules:
        if key not in matched:
            raise UserError(
                f"optimizer.rules.{key}: pattern '{rules[key]['pattern']}' matches no parameter: "
                f"correct it, or switch the rule off with optimizer.rules.{key}=null"
            )
    return [
        {**{k: v for k, v in group.items() if k != "names"}, "name": "+".join(group["names"])}
        for group in groups.values()
    ]


def can_fuse(precision: str | int) -> bool:
    """Whether the fused optimiser can be used at the Trainer's ``precision``: with fp16 loss
    scaling it would unscale gradients itself, after clipping.
    """
    return str(precision) not in ("16-mixed", "16")


def adamw(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    effective_batch: int,
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    rules: Mapping[str, Rule | None],
    decay_vectors: bool = True,
    scale_lr_with_batch: bool = False,
    base_batch: int = 16,
    fused: bool = True,
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) over ``parameter_groups``, with torch's ``fused`` kernels
    or its default choice.

    With ``scale_lr_with_batch`` the learning rate is multiplied by ``effective_batch /
    base_batch`` (Goyal et al. 2017, section 2.1), where ``effective_batch`` is the number of
    images per optimiser step over all devices.
    """
    rate = lr * effective_batch / base_batch if scale_lr_with_batch else lr
    groups = parameter_groups(named_parameters, rate, weight_decay, rules, decay_vectors)
    return torch.optim.AdamW(
        groups,
        lr=rate,
        betas=(betas[0], betas[1]),
        weight_decay=weight_decay,
        fused=fused or None,
    )
