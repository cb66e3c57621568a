"""What cannot train together is refused at composition; all else trains."""

from __future__ import annotations

import pytest
import torch
from hydra.utils import instantiate
from test_experiment_training import sizes
from tiny import backward, batch, composed, options
from torch import nn

from codetr.checkpoints.experiment import without_initial_weights
from codetr.errors import UserError
from codetr.supervision.schemes.protocol import require_fit

ENCODERS = (".DeformableEncoder", ".DenseEncoder")
MODELS = [
    model
    for model in options("model")
    if composed((f"model={model}",)).model.encoder._target_.endswith(ENCODERS)
]
"""Those whose backbone may be exchanged for a small one."""
SCHEMES = ("denoising", "query_denoising", "collaborative", "hybrid", "group", "mixed")
SOFTMAX = "model.head.classification={_target_: codetr.classification.Softmax, background: 3}"


def build(*overrides: str) -> tuple[nn.Module, nn.ModuleDict]:
    model = next((o for o in overrides if o.startswith("model=")), "model=co_dino")
    cfg = composed((*sizes(model), "aux_heads=[atss]", "supervision.hybrid_queries=10", *overrides))
    parts = {name: instantiate(part) for name, part in cfg.scheme.items()}
    return instantiate(cfg.model.detector), nn.ModuleDict(parts)


def refusal(detector: nn.Module, schemes: nn.ModuleDict) -> str | None:
    try:
        require_fit(detector, schemes)  # type: ignore[arg-type]
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("model", MODELS)
def test_a_scheme_is_refused_exactly_where_a_step_would_fail(model: str, scheme: str) -> None:
    overrides = (f"model={model}", f"scheme=[one_to_one,{scheme}]")
    if scheme == "group" and not any(composed(overrides).supervision.per_query.values()):
        with pytest.raises(Exception, match="would be copies of the main one"):
            build(*overrides)
        return
    detector, schemes = build(*overrides)
    said = refusal(detector, schemes)
    if said is None:
        assert backward(detector, schemes, batch((3, 2))).isfinite()
    else:
        assert said.startswith(f"scheme=[{scheme}] ")
        with pytest.raises((AssertionError, RuntimeError, ValueError)):
            backward(detector, schemes, batch((3, 2)))


@pytest.mark.parametrize("model", sorted({*options("model")} - {*MODELS}))
def test_other_models_train_as_published(model: str) -> None:
    with torch.device("meta"):
        cfg = composed((f"model={model}", "scheme=[one_to_one]", "num_classes=3"))
        detector = instantiate(without_initial_weights(cfg.model.detector))
        schemes = {name: instantiate(part) for name, part in cfg.scheme.items()}
    require_fit(detector, schemes)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model=deformable_detr", "scheme=[one_to_one,denoising]"],
            "scheme=\\[denoising\\] adds queries that start at boxes, but this model's start at "
            "points",
        ),
        (
            ["model=conditional_detr", "scheme=[one_to_one,query_denoising]"],
            "scheme=\\[query_denoising\\] adds queries that start at boxes",
        ),
        (
            ["model=dab_detr", "scheme=[hybrid]", "supervision.per_query.anchors=false"],
            "learns anchors: set supervision.per_query.anchors=true",
        ),
        (
            ["model=co_deformable", "scheme=[denoising]"],
            "scheme=\\[denoising\\] adds queries without a position",
        ),
        (
            ["model=co_deformable", "supervision=co_dino", "scheme=[collaborative]"],
            "scheme=\\[collaborative\\] adds queries without a position",
        ),
        (
            ["model=deformable_detr", "scheme=[hybrid]", "supervision.per_query.position=false"],
            "learns content and position: set supervision.per_query.position=true",
        ),
        (
            ["model=co_dino", "scheme=[hybrid]", "supervision.per_query.content=false"],
            "learns content: set supervision.per_query.content=true",
        ),
        (
            ["model=co_dino", "scheme=[one_to_one]", f"+{SOFTMAX}"],
            "scheme=\\[one_to_one\\] has a HungarianMatcher of sigmoid logits, but this model's "
            "are Softmax\\(background=3\\)",
        ),
        (
            ["model=co_dino", "scheme=[mixed]", f"+{SOFTMAX}"],
            "scheme=\\[mixed\\] has a TopKAssigner of sigmoid logits",
        ),
    ],
)
def test_the_message_names_scheme_and_remedy(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        require_fit(*build(*overrides))  # type: ignore[arg-type]


def test_a_softmax_trains_with_what_reads_one() -> None:
    detector, schemes = build(
        "model=co_dino",
        "scheme=[one_to_one]",
        f"+{SOFTMAX}",
        "supervision.criterion.classification._target_=codetr.supervision.criteria.SoftmaxClassification",
        "+supervision.matcher.class_cost={_target_: codetr.supervision.assigners.ProbabilityCost}",
    )
    require_fit(detector, schemes)  # type: ignore[arg-type]
    assert backward(detector, schemes, batch((3, 2))).isfinite()
