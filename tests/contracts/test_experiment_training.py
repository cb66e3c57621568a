"""What every recipe in conf/experiment owes when it trains: the same parts, made small."""

import re
from itertools import chain

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from tiny import CONF, backward, batch, composed, options, without_gradient
from torch import nn

from codetr.detectors.protocol import MAIN
from codetr.structures import QueryGroup
from codetr.training.losses import training_losses

EXPERIMENTS = options("experiment")
SMALL = (
    "model/backbone=resnet10_thin",
    "model.levels=3",
    "model.aux_levels=4",
    "model.dim=32",
    "model.heads=4",
    "model.points=2",
    "model.hidden=32",
    "model.encoder_layers=1",
    "model.decoder_layers=2",
    "model.num_queries=12",
    "model.regions.fc_dim=32",
    "num_classes=3",
)


def recipe(experiment: str, *overrides: str) -> DictConfig:
    return composed((f"experiment={experiment}", "data.root=nowhere", *overrides))


def build(cfg: DictConfig) -> tuple[nn.Module, nn.ModuleDict]:
    """Detector and schemes, with no box embedding at its special start."""
    detector = instantiate(cfg.model.detector)
    schemes = nn.ModuleDict({name: instantiate(part) for name, part in cfg.scheme.items()})
    with torch.no_grad():
        for parameter in detector.head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return detector, schemes


@pytest.mark.parametrize("counts", [(3, 2), (3, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_losses_are_finite_and_reach_every_parameter(
    experiment: str, counts: tuple[int, int]
) -> None:
    detector, schemes = build(recipe(experiment, *SMALL))
    assert backward(detector, schemes, batch(counts)).isfinite()
    assert without_gradient(detector, schemes) == []


@torch.no_grad()
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_main_group_is_unaffected_and_several_passes_give_the_same(experiment: str) -> None:
    detector, schemes = build(recipe(experiment, *SMALL))
    detector.double().eval()
    schemes.double()
    data = batch((3, 2)).to(torch.float64)
    memory = detector.encode(data.images)
    main = QueryGroup(name=MAIN, queries=detector.queries(memory))
    proposals = [scheme.propose(detector, memory, data) for scheme in schemes.values()]
    extra = list(chain.from_iterable(proposal.groups for proposal in proposals))
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


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_losses_are_named_by_scheme_layer_and_term(experiment: str) -> None:
    cfg = recipe(experiment, *SMALL)
    detector, schemes = build(cfg)
    losses = training_losses(detector, schemes, batch((3, 2)))
    assert {name.split("/")[0] for name in losses} == set(cfg.scheme)
    assert all(re.fullmatch(r"\w+/\w+(/\w+)?/\w+|\w+/empty", name) for name in losses)
    layers = {f"one_to_one/layer{i}/cls" for i in range(2)}
    assert layers | {"one_to_one/encoder/cls"} <= set(losses)
    for head in cfg.aux_heads:
        assert f"collaborative/positive_{head}/layer1/giou" in losses


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_optimizer_rules_match_parameters_of_the_full_model(experiment: str) -> None:
    cfg = recipe(experiment, "num_classes=80", "model.backbone.pretrained=false")
    with torch.device("meta"):
        parts = nn.ModuleDict({"detector": instantiate(cfg.model.detector)})
        schemes = {name: instantiate(part) for name, part in cfg.scheme.items()}
        parts["schemes"] = nn.ModuleDict(schemes)
    optimizer = instantiate(cfg.optimizer, _convert_="all")(parts.named_parameters(), 16)
    wanted = sum(p.requires_grad for p in parts.parameters())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == wanted
    assert {group["weight_decay"] for group in optimizer.param_groups} == {1e-4}
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    slow = [re.compile(rule.pattern) for rule in cfg.optimizer.rules.values() if rule]
    for name, parameter in parts.named_parameters():
        if parameter.requires_grad:
            factor = 0.1 if any(pattern.search(name) for pattern in slow) else 1.0
            assert rates[id(parameter)] == pytest.approx(2e-4 * factor), name


def test_official_recipes() -> None:
    """What the two published R50 configurations say."""
    dino = recipe("co_dino_5scale_r50_1x_coco")
    deformable = recipe("co_deformable_detr_r50_1x_coco")
    assert list(dino.scheme) == ["one_to_one", "denoising", "collaborative"]
    assert list(deformable.scheme) == ["one_to_one", "collaborative"]
    assert dino.optimizer.rules.sampling_offsets is None
    assert deformable.optimizer.rules.sampling_offsets.lr_mult == 0.1
    assert (dino.model.num_queries, deformable.model.num_queries) == (900, 300)
    assert (dino.model.levels, deformable.model.levels) == (5, 4)
    for cfg in (dino, deformable):
        assert list(cfg.aux_heads) == ["rcnn", "atss"]
        assert (cfg.schedule.epochs, list(cfg.schedule.milestones)) == (12, [11])
        assert (cfg.trainer.gradient_clip_val, cfg.data.batch_size) == (0.1, 2)
        assert cfg.callbacks.ema is None
        assert cfg.model.denoising_queries == 100
        assert cfg.model.positive_queries == 300
        assert (cfg.scheme.collaborative.lambda_1, cfg.scheme.collaborative.lambda_2) == (1, 2)
    assert sorted(EXPERIMENTS) == sorted(p.stem for p in (CONF / "experiment").iterdir())
