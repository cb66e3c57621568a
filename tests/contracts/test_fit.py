"""What cannot train together is refused at composition; all else trains."""

from __future__ import annotations

import pytest
from hydra.utils import instantiate
from test_experiment_training import sizes
from test_scheme_table import PAGE
from test_token_detectors import COMMON, RECIPES
from tiny import backward, batch, composed, options, without_gradient
from torch import nn

from codetr.conf_folder import conf_folder
from codetr.errors import UserError, user_error
from codetr.supervision.schemes.protocol import require_fit
from tools.docs.scheme_table import families

ENCODERS = (".DeformableEncoder", ".DenseEncoder")
"""Of models whose backbone may be exchanged for a small one."""
TOKENS = {name.split("_")[0]: (*COMMON, *sizes) for name, sizes in RECIPES.items()}
"""What makes the others small, by how their names begin."""
SCHEMES = options("scheme")
SOFTMAX = "model.head.classification={_target_: codetr.classification.Softmax, background: 3}"


def build(*overrides: str) -> tuple[nn.Module, nn.ModuleDict]:
    model = next((o for o in overrides if o.startswith("model=")), "model=co_dino")
    own = small(model)
    cfg = composed((*own, "aux_heads=[atss]", "supervision.hybrid_queries=10", *overrides))
    parts = {name: instantiate(part) for name, part in cfg.scheme.items()}
    return instantiate(cfg.model.detector), nn.ModuleDict(parts)


def small(model: str) -> tuple[str, ...]:
    """Overrides that make ``model`` small."""
    if composed((model,)).model.encoder._target_.endswith(ENCODERS):
        return sizes(model)
    return TOKENS[model.removeprefix("model=").split("_")[0]]


def refusal(detector: nn.Module, schemes: nn.ModuleDict) -> str | None:
    try:
        require_fit(detector, schemes)  # type: ignore[arg-type]
    except UserError as error:
        return str(error)
    return None


def composition(model: str, scheme: str) -> tuple[nn.Module, nn.ModuleDict] | str:
    """``model`` with one-to-one matching and ``scheme``, or why they do not go together."""
    chosen = dict.fromkeys(("one_to_one", scheme))
    try:
        detector, schemes = build(f"model={model}", f"scheme=[{','.join(chosen)}]")
        require_fit(detector, schemes)  # type: ignore[arg-type]
    except Exception as error:
        found = user_error(error)
        if found is None:
            raise
        return str(found)
    return detector, schemes


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("model", options("model"))
def test_what_is_composed_trains_and_all_else_is_refused_in_one_line(
    model: str, scheme: str
) -> None:
    found = composition(model, scheme)
    if isinstance(found, str):
        assert "\n" not in found
        assert scheme in found
    else:
        detector, schemes = found
        for counts in ((3, 2), (0, 0)):
            assert backward(detector, schemes, batch(counts)).isfinite()
        assert without_gradient(detector, schemes) == []
    if model in families(conf_folder()):
        assert told(model, scheme) == ("yes" if not isinstance(found, str) else "no")


def told(model: str, scheme: str) -> str:
    """What the table of docs/method.md says: yes or no."""
    rows = [line.split("|")[1:-1] for line in PAGE.read_text("utf-8").splitlines() if "| `" in line]
    cells = [[cell.strip() for cell in row] for row in rows]
    (names,) = (row for row in cells if row[0] == "`model=`")
    (own,) = (row for row in cells if row[0] == f"`{model}`" and len(row) == len(names))
    return own[names.index(f"`{scheme}`")].split()[0]


@pytest.mark.parametrize("scheme", ["denoising", "query_denoising"])
@pytest.mark.parametrize("model", ["co_deformable", "conditional_detr", "deformable_refined"])
def test_a_step_would_fail_where_a_form_is_refused(model: str, scheme: str) -> None:
    detector, schemes = build(f"model={model}", f"scheme=[one_to_one,{scheme}]")
    assert refusal(detector, schemes) is not None
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        backward(detector, schemes, batch((3, 2)))


def test_a_decoder_without_layers_has_nothing_for_mixed_supervision() -> None:
    sigmoid = "model.head.classification={_target_: codetr.classification.Sigmoid}"
    detector, schemes = build(
        "model=yolos",
        "supervision=conditional",
        "scheme=[mixed]",
        "~model.head.classification",
        f"+{sigmoid}",
    )
    said = refusal(detector, schemes)
    assert said is not None
    assert said.startswith("scheme=[mixed] reads the output of cross-attention in the decoder's")
    with pytest.raises(KeyError):
        backward(detector, schemes, batch((3, 2)))


@pytest.mark.parametrize("model", ["co_dino", "conditional_detr", "vidt"])
def test_mixed_supervision_has_as_many_branches_as_there_are_layers(model: str) -> None:
    given = (f"model={model}", "scheme=[mixed]", "scheme.mixed.num_layers=3")
    detector, schemes = build(*given)
    assert refusal(detector, schemes) == (
        "scheme=[mixed] is made for 3 decoder layers, but there are 2: set "
        "scheme.mixed.num_layers=2"
    )
    with pytest.raises(ValueError, match="zip"):
        backward(detector, schemes, batch((3, 2)))


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
            "scheme=\\[one_to_one\\] has a HungarianMatcher for sigmoid logits, but this model's "
            "are Softmax\\(background=3\\)",
        ),
        (
            ["model=co_dino", "scheme=[mixed]", f"+{SOFTMAX}"],
            "scheme=\\[mixed\\] has a TopKAssigner for sigmoid logits",
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
