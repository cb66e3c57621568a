import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn

from codetr.conf_folder import conf_folder
from codetr.errors import UserError
from codetr.training.optim import adamw, parameter_groups

CONF = conf_folder()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(2, 2)
        self.offsets = nn.Linear(2, 2)
        self.head = nn.Linear(2, 2)


RULES = {
    "backbone": {"pattern": "backbone", "lr_mult": 0.1},
    "offsets": {"pattern": r"^offsets\.", "lr_mult": 0.1},
}


def groups_of(**options: object) -> dict[str, dict]:
    model = Model()
    arguments = {"lr": 1.0, "weight_decay": 0.5, "rules": RULES, **options}
    groups = parameter_groups(model.named_parameters(), **arguments)
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    return {g["name"]: g for g in groups}


def test_rules_with_equal_numbers_share_a_group() -> None:
    groups = groups_of()
    assert set(groups) == {"backbone+offsets", "rest"}
    assert groups["backbone+offsets"]["lr"] == pytest.approx(0.1)
    assert groups["rest"]["lr"] == 1.0
    assert {g["weight_decay"] for g in groups.values()} == {0.5}


def test_factors_of_several_rules_multiply_and_the_last_decay_counts() -> None:
    rules = {
        "backbone": {"pattern": "backbone", "lr_mult": 0.1, "weight_decay": 0.3},
        "bias": {"pattern": "bias$", "lr_mult": 2.0, "weight_decay": 0.0},
    }
    groups = groups_of(rules=rules)
    assert groups["backbone+bias"]["lr"] == pytest.approx(0.2)
    assert groups["backbone+bias"]["weight_decay"] == 0.0
    assert groups["backbone"]["weight_decay"] == 0.3


def test_vectors_can_be_exempt_from_decay() -> None:
    groups = groups_of(rules={}, decay_vectors=False)
    assert set(groups) == {"rest", "rest_no_decay"}
    assert all(p.ndim == 1 for p in groups["rest_no_decay"]["params"])
    assert groups["rest_no_decay"]["weight_decay"] == 0


class Trunk(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.body = nn.Module()
        self.body.patch_embed = nn.Linear(2, 2)
        self.body.pos_embed = nn.Parameter(torch.zeros(1, 5, 2))
        self.body.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(depth))
        self.body.out_norm = nn.LayerNorm(2)


def layer_decay_model(depth: int) -> nn.ModuleDict:
    detector = nn.Module()
    detector.backbone, detector.head = Trunk(depth), nn.Linear(2, 2)
    detector.head.scale = nn.Parameter(torch.ones(()))
    return nn.ModuleDict({"detector": detector})


def official_layer_id(name: str) -> int:
    """What the official optimiser builder makes of an official name, for 24 layers."""
    if name == "backbone.pos_embed" or name.startswith("backbone.patch_embed"):
        return 0
    return int(name.split(".")[2]) + 1 if name.startswith("backbone.blocks") else 25


def test_layer_decay_is_that_of_the_official_vit_recipe() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=["optimizer=layer_decay"])
    parts = layer_decay_model(24)
    optimizer = instantiate(cfg.optimizer, _convert_="all")(parts.named_parameters(), 16)
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in parts.named_parameters():
        official = name.removeprefix("detector.").replace("backbone.body", "backbone")
        group = found[id(parameter)]
        rate = 5e-5 * 0.8 ** (25 - official_layer_id(official))
        assert group["lr"] == pytest.approx(rate, rel=1e-12), name
        assert group["weight_decay"] == (0.0 if parameter.ndim == 1 else 0.01), name
    names = [group["name"] for group in optimizer.param_groups]
    assert len(names) == len(set(names)) == 2 * (24 + 2)
    assert {"stem", "blocks_0", "blocks_23_no_decay", "rest", "rest_no_decay"} <= set(names)


def test_layers_beyond_the_depth_are_an_error() -> None:
    rules = {"blocks": {"pattern": r"blocks\.(\d+)\.", "lr_decay": 0.5, "depth": 2}}
    with pytest.raises(UserError, match=r"optimizer\.rules\.blocks: depth=2 .* layer 3"):
        parameter_groups(layer_decay_model(4).named_parameters(), 1.0, 0.0, rules)


def test_decay_by_layers_needs_their_number() -> None:
    rules = {"blocks": {"pattern": r"blocks\.(\d+)\.", "lr_decay": 0.5}}
    with pytest.raises(UserError, match="lr_decay with depth"):
        parameter_groups(layer_decay_model(4).named_parameters(), 1.0, 0.0, rules)


def test_frozen_parameters_are_left_out() -> None:
    model = Model()
    model.backbone.requires_grad_(False)
    groups = parameter_groups(model.named_parameters(), 1.0, 0.0, RULES)
    assert sum(len(g["params"]) for g in groups) == 4


def test_rule_without_a_parameter_is_an_error() -> None:
    rules = {"nothing": {"pattern": "no_such_part", "lr_mult": 0.1}}
    with pytest.raises(UserError, match=r"nothing.*no_such_part.*optimizer\.rules\.nothing=null"):
        groups_of(rules=rules)
    assert set(groups_of(rules={"nothing": None})) == {"rest"}


def test_unknown_key_of_a_rule_is_an_error() -> None:
    with pytest.raises(UserError, match="lr_multiplier"):
        groups_of(rules={"backbone": {"pattern": "backbone", "lr_multiplier": 0.1}})


@pytest.mark.parametrize(("scaled", "rate"), [(False, 2e-4), (True, 1e-4)])
def test_rate_scales_with_the_batch_only_on_request(scaled: bool, rate: float) -> None:
    optimizer = adamw(
        Model().named_parameters(),
        8,
        lr=2e-4,
        weight_decay=0.0,
        rules=RULES,
        scale_lr_with_batch=scaled,
        base_batch=16,
    )
    rates = {g["name"]: g["lr"] for g in optimizer.param_groups}
    assert rates == pytest.approx({"rest": rate, "backbone+offsets": rate / 10})
    assert isinstance(optimizer, torch.optim.AdamW)
