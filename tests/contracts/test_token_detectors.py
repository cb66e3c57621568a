"""YOLOS and ViDT, made small: their recipes train, and schemes meet them."""

from __future__ import annotations

import pytest
import torch
from hydra.utils import instantiate
from tiny import backward, batch, composed, without_gradient
from torch import nn

from codetr.errors import UserError
from codetr.models.detectors.protocol import MAIN
from codetr.settings.check import check_settings
from codetr.supervision.schemes.protocol import require_fit
from codetr.training.acceleration import compile_parts
from codetr.training.losses import propose, training_losses

COMMON = (
    "data.root=nowhere",
    "model.backbone.pretrained=false",
    "model.dim=32",
    "model.hidden=32",
    "model.heads=2",
    "model.num_queries=12",
    "supervision.hybrid_queries=20",
    "supervision.positive_queries=10",
    "num_classes=3",
)
RECIPES = {
    "yolos_s_150e_coco": ("model.backbone.depth=2", "model.backbone.table=[64,64]"),
    "vidt_swin_small_50e_coco": (
        "model.points=2",
        "model.decoder_layers=2",
        "model.backbone.embed_dim=8",
        "model.backbone.depths=[1,1,2,1]",
        "model.backbone.heads=[1,1,2,2]",
        "model.backbone.last_width=16",
        "model.query_init.width=64",
    ),
}
SIZES = RECIPES | {f"teach_{name}": sizes for name, sizes in RECIPES.items()}
YOLOS, VIDT = RECIPES


def build(experiment: str, *overrides: str) -> tuple[nn.Module, nn.ModuleDict]:
    cfg = composed((f"experiment={experiment}", *COMMON, *SIZES[experiment], *overrides))
    parts = {name: instantiate(part) for name, part in cfg.scheme.items()}
    detector = instantiate(cfg.model.detector)
    with torch.no_grad():
        for parameter in detector.head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return detector, nn.ModuleDict(parts)


@pytest.mark.parametrize("counts", [(3, 2), (3, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("experiment", SIZES)
def test_losses_are_finite_and_reach_every_parameter(
    experiment: str, counts: tuple[int, int]
) -> None:
    detector, schemes = build(experiment)
    require_fit(detector, schemes)  # type: ignore[arg-type]
    assert backward(detector, schemes, batch(counts)).isfinite()
    assert without_gradient(detector, schemes) == []


@pytest.mark.parametrize("counts", [(3, 2), (0, 0)], ids=str)
@pytest.mark.parametrize("experiment", RECIPES)
def test_masks_are_learned(experiment: str, counts: tuple[int, int]) -> None:
    detector, schemes = build(experiment, "masks=refine_small")
    require_fit(detector, schemes)  # type: ignore[arg-type]
    losses = training_losses(detector, schemes, batch(counts))
    assert bool(losses["masks/mask"].value > 0) == any(counts)
    assert backward(detector, schemes, batch(counts)).isfinite()
    assert without_gradient(detector, schemes) == []


@pytest.mark.parametrize(("experiment", "layers"), [(YOLOS, 1), (VIDT, 3)])
def test_every_answer_is_measured(experiment: str, layers: int) -> None:
    detector, schemes = build(f"teach_{experiment}")
    losses = training_losses(detector, schemes, batch((3, 2)))
    terms = {f"layer{i}/{term}" for i in range(layers) for term in ("cls", "bbox", "giou")}
    expected = {f"one_to_one/{t}" for t in terms} | {f"teacher/0/{t}" for t in terms}
    assert set(losses) == expected


@pytest.mark.parametrize("scheme", ["hybrid", "group", "denoising", "collaborative", "mixed"])
def test_what_needs_more_than_yolos_has_is_refused_in_one_line(scheme: str) -> None:
    detector, schemes = build(YOLOS, f"scheme=[one_to_one,{scheme}]", "aux_heads=[atss]")
    with pytest.raises(UserError, match=scheme) as caught:
        require_fit(detector, schemes)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@torch.no_grad()
@pytest.mark.parametrize("scheme", ["hybrid", "group"])
def test_further_groups_leave_vidts_own_queries_alone(scheme: str) -> None:
    detector, schemes = build(VIDT, f"scheme=[one_to_one,{scheme}]")
    detector.double().eval()
    schemes.double()
    data = batch((3, 2)).to(torch.float64)
    memory = detector.encode(data.images)
    (main, *further), _ = propose(detector, schemes, memory, data)  # type: ignore[arg-type]
    assert further
    alone = detector.decode(memory, [main])[MAIN]
    together = detector.decode(memory, [main, *further])[MAIN]
    for one, other in zip(alone.layers, together.layers, strict=True):
        torch.testing.assert_close(one.logits, other.logits, rtol=0, atol=1e-10)
        torch.testing.assert_close(one.boxes, other.boxes, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "choice", [*(f"experiment={name}" for name in SIZES), "model=yolos_tiny", "model=vidt_tiny"]
)
def test_settings_are_accepted_and_parts_compiled(choice: str) -> None:
    teachers = ("data.teachers=[a.json]",) if "teach" in choice else ()
    own = () if "experiment" in choice else ("scheme=[one_to_one]", "aux_heads=[]")
    given = (choice, *own, *teachers, "data.root=nowhere", "paths.run_dir=here")
    cfg = composed(given)
    check_settings(cfg, given)
    cfg.model.backbone.pretrained, cfg.num_classes = False, 3
    with torch.device("meta"):
        detector = instantiate(cfg.model.detector)
    compile_parts(detector, ["backbone", "encoder", "decoder"])
    assert detector.backbone._compiled_call_impl is not None


@pytest.mark.parametrize("experiment", SIZES)
def test_the_optimiser_has_one_rate_and_the_official_decay(experiment: str) -> None:
    """Vectors of the backbone, learned tokens and the first positions do not decay."""
    cfg = composed((f"experiment={experiment}", "data.root=nowhere", "num_classes=80"))
    cfg.model.backbone.pretrained = False
    with torch.device("meta"):
        parts = nn.ModuleDict({"detector": instantiate(cfg.model.detector)})
    optimizer = instantiate(cfg.optimizer, _convert_="all")(parts.named_parameters(), 8)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    learned = ("body.pos_embed", "body.cls_token", "body.det_token", "tokens", "positions")
    exempt = {f"detector.backbone.{name}" for name in learned}
    for name, parameter in parts.named_parameters():
        group = groups[id(parameter)]
        vector = name.startswith("detector.backbone.") and parameter.ndim == 1
        assert group["lr"] == cfg.optimizer.lr, name
        assert group["weight_decay"] == (0.0 if vector or name in exempt else 1e-4), name
    assert exempt & {name for name, _ in parts.named_parameters()}


def test_vidts_matcher_adds_the_official_epsilon() -> None:
    cfg = composed((f"experiment={VIDT}", "data.root=nowhere"))
    assert instantiate(cfg.supervision.matcher).class_cost.eps == 1e-8
