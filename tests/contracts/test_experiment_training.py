"""What every recipe in conf/experiment owes when it trains: the same parts, made small.

Recipes that are put together from the same parts are tested once, as a family.
"""

import re

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from tiny import backward, batch, composed, published, without_gradient
from torch import nn

from codetr.models.detectors.protocol import MAIN
from codetr.training.losses import propose, training_losses

EXPERIMENTS = [name for name in published() if not re.search("yolos|vidt", name)]
"""Those whose backbone may be exchanged; see ``test_token_detectors`` for the others."""
POSITIVE_QUERIES = [
    "co_dino_5scale_r50_1x_coco",
    "co_dino_5scale_vit_large_coco",
    "co_deformable_detr_r50_1x_coco",
    "co_deformable_detr_one_stage_r50_1x_coco",
    "co_conditional_detr_r50_c5_3x_coco",
    "co_dab_detr_r50_c5_3x_coco",
]
SEVERAL_GROUPS = [
    *POSITIVE_QUERIES,
    "dino_4scale_r50_1x_coco",
    "h_deformable_detr_r50_1x_coco",
    "h_deformable_detr_no_tricks_r50_1x_coco",
    "teach_h_deformable_detr_r50_3x_coco",
    "teach_dino_4scale_swin_large_3x_coco",
    "dn_detr_r50_dc5_50e_coco",
    "teach_dn_detr_r50_dc5_50e_coco",
]
FAMILIES = [
    *SEVERAL_GROUPS,
    "deformable_detr_pp_r50_1x_coco",
    "deformable_detr_r50_1x_coco",
    "deformable_detr_two_stage_r50_1x_coco",
    "ms_detr_r50_300q_1x_coco",
    "ms_detr_pp_r50_300q_1x_coco",
    "conditional_detr_r50_dc5_50e_coco",
    "dab_detr_r50_dc5_50e_coco",
    "teach_conditional_detr_r50_dc5_50e_coco",
    "teach_dab_detr_r50_dc5_50e_coco",
    "teach_deformable_detr_tricks_swin_small_3x_coco",
    "teach_deformable_detr_two_stage_swin_small_3x_coco",
]
PYRAMID = (
    "model.neck._target_=codetr.models.necks.ChannelMapper",
    "++model.neck.extra=1",
    "model.levels=3",
    "model.aux_levels=4",
    "model.points=2",
)
ONE_MAP = ("model.backbone.out_indices=[3]",)
SMALL = (
    "model/backbone=resnet10_thin",
    "model.dim=32",
    "model.heads=4",
    "model.hidden=32",
    "model.encoder_layers=1",
    "model.decoder_layers=2",
    "model.num_queries=12",
    "supervision.regions.fc_dim=32",
    "num_classes=3",
)


def recipe(experiment: str, *overrides: str) -> DictConfig:
    return composed((f"experiment={experiment}", "data.root=nowhere", *overrides))


def sizes(*chosen: str) -> tuple[str, ...]:
    """Overrides that make what is ``chosen`` small."""
    return (*SMALL, *(ONE_MAP if composed(chosen).model.levels == 1 else PYRAMID))


def small(experiment: str) -> DictConfig:
    dropped = ["~model.backbone.drop_path_rate"] if "swin" in experiment else []
    return recipe(experiment, *sizes(f"experiment={experiment}"), *dropped)


def build(cfg: DictConfig) -> tuple[nn.Module, nn.ModuleDict]:
    """Detector and schemes, with no box embedding at its special start."""
    detector = instantiate(cfg.model.detector)
    schemes = nn.ModuleDict({name: instantiate(part) for name, part in cfg.scheme.items()})
    with torch.no_grad():
        for parameter in detector.head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return detector, schemes


def family(experiment: str) -> tuple[object, ...]:
    """The kinds of parts that a recipe is made of, backbone and neck apart."""
    cfg = recipe(experiment)
    kinds = [cfg.model.query_init, cfg.model.head, cfg.supervision.criterion.classification]
    boxes = [part.box_head for part in cfg.aux_heads.values() if "box_head" in part]
    decoder = [cfg.model.decoder.get(key) for key in ("norm", "refine", "look_forward_twice")]
    targets = [part._target_ for part in (*kinds, *boxes)]
    return (*cfg.scheme, *cfg.aux_heads, *targets, *map(str, decoder))


@pytest.mark.slow
def test_every_recipe_belongs_to_a_family() -> None:
    known = {family(experiment) for experiment in FAMILIES}
    assert len(known) == len(FAMILIES)
    assert {family(experiment) for experiment in EXPERIMENTS} == known


@pytest.mark.parametrize("counts", [(3, 2), (3, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("experiment", FAMILIES)
def test_losses_are_finite_and_reach_every_parameter(
    experiment: str, counts: tuple[int, int]
) -> None:
    detector, schemes = build(small(experiment))
    assert backward(detector, schemes, batch(counts)).isfinite()
    assert without_gradient(detector, schemes) == []


@torch.no_grad()
@pytest.mark.parametrize("experiment", SEVERAL_GROUPS)
def test_main_group_is_unaffected_and_several_passes_give_the_same(experiment: str) -> None:
    detector, schemes = build(small(experiment))
    detector.double().eval()
    schemes.double()
    data = batch((3, 2)).to(torch.float64)
    memory = detector.encode(data.images)
    (main, *extra), _ = propose(detector, schemes, memory, data)
    assert extra
    alone = detector.decode(memory, [main])[MAIN]
    together = detector.decode(memory, [main, *extra])
    detector.one_pass = False
    apart = detector.decode(memory, [main, *extra])
    for name, decoded in together.items():
        references = [apart[name], alone] if name == MAIN else [apart[name]]
        for reference in references:
            for one, other in zip(decoded.layers, reference.layers, strict=True):
                torch.testing.assert_close(one.logits, other.logits, rtol=0, atol=1e-10)
                torch.testing.assert_close(one.boxes, other.boxes, rtol=0, atol=1e-10)


@pytest.mark.parametrize("experiment", FAMILIES)
def test_losses_are_named_by_scheme_layer_and_term(experiment: str) -> None:
    cfg = small(experiment)
    detector, schemes = build(cfg)
    losses = training_losses(detector, schemes, batch((3, 2)))
    assert {name.split("/")[0] for name in losses} == set(cfg.scheme)
    assert all(re.fullmatch(r"\w+/\w+(/\w+)?/\w+", name) for name in losses)
    assert {f"one_to_one/layer{i}/cls" for i in range(2)} <= set(losses)
    two_stage = "stage" in cfg.model.query_init
    assert ("one_to_one/encoder/cls" in losses) == two_stage
    for head in cfg.aux_heads:
        assert f"collaborative/positive_{head}/layer1/giou" in losses


def expected_factor(name: str, cfg: DictConfig, experiment: str) -> float:
    """On the learning rate, from what the official recipes say."""
    if cfg.optimizer.rules.get("blocks"):  # layer-wise decay of ViT-L
        block = re.match(r"detector\.backbone\.body\.blocks\.(\d+)\.", name)
        if block:
            return 0.8 ** (24 - int(block[1]))
        return 0.8**25 if re.search(r"patch_embed|pos_embed", name) else 1.0
    slow = ["detector.backbone."]
    if "deformable" in experiment or "ms_detr" in experiment:
        slow += ["sampling_offsets", "reference_points"]
    return 0.1 if any(part in name for part in slow) else 1.0


@pytest.mark.parametrize(
    "experiment",
    [*FAMILIES, "co_deformable_detr_swin_tiny_1x_coco", "co_dino_5scale_lsj_vit_large_lvis"],
)
def test_every_parameter_of_the_full_model_has_the_official_rate(experiment: str) -> None:
    cfg = recipe(experiment, "num_classes=80", "model.backbone.pretrained=false")
    with torch.device("meta"):
        parts = nn.ModuleDict({"detector": instantiate(cfg.model.detector)})
        schemes = {name: instantiate(part) for name, part in cfg.scheme.items()}
        parts["schemes"] = nn.ModuleDict(schemes)
    optimizer = instantiate(cfg.optimizer, _convert_="all")(parts.named_parameters(), 16)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    trainable = {name: p for name, p in parts.named_parameters() if p.requires_grad}
    assert len(groups) == len(trainable)
    for name, parameter in trainable.items():
        group = groups[id(parameter)]
        factor = expected_factor(name, cfg, experiment)
        assert group["lr"] == pytest.approx(cfg.optimizer.lr * factor), name
        exempt = not cfg.optimizer.decay_vectors and parameter.ndim == 1
        assert group["weight_decay"] == (0 if exempt else cfg.optimizer.weight_decay), name
