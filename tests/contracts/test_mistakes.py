"""Mistakes in a configuration are one line that names the key, before anything is built."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from mistakes import ADDED, NUMBERS, RELATED
from omegaconf import DictConfig, OmegaConf
from tiny import composed, options, published

from codetr.conf_folder import conf_folder
from codetr.errors import UserError
from codetr.settings import check_settings, names_as_text
from codetr.settings.check import _is_referred_to, settings_of

CHOSEN = ("scheme", "schedule", "callbacks", "trainer", "model/backbone", "model/neck")


@cache
def base(*chosen: str) -> DictConfig:
    return composed(("paths.run_dir=run", *chosen))


def is_option(override: str) -> bool:
    """Whether it chooses an option, or a list of them, that is there."""
    group, _, name = override.partition("=")
    return group in CHOSEN and (
        name.startswith("[") or (conf_folder() / group / f"{name}.yaml").is_file()
    )


def mistaken(*overrides: str) -> DictConfig:
    """What train.py composes of them. Options of groups are composed, values are set: quicker."""
    chosen = [o for o in overrides if is_option(o)]
    cfg = deepcopy(base(*chosen))
    parser = OverridesParser.create()
    OmegaConf.set_struct(cfg, False)
    for override in overrides:
        if override not in chosen:
            parsed = parser.parse_override(override)
            OmegaConf.update(cfg, parsed.key_or_group, parsed.value(), merge=False, force_add=True)
    return cfg


def message(*overrides: str) -> str:
    """What the user is told."""
    with pytest.raises(UserError) as caught:
        check_settings(mistaken(*overrides), overrides)
    text = str(caught.value)
    assert "\n" not in text
    assert ": " in text, "names what to do"
    assert len(text) < 400
    return text


@pytest.mark.parametrize("key", NUMBERS)
def test_a_value_that_cannot_be_meant(key: str) -> None:
    for value in NUMBERS[key].split():
        assert message(f"{key}={value}").startswith(f"{key}="), value


@pytest.mark.parametrize("override", ADDED)
def test_a_setting_that_nothing_reads(override: str) -> None:
    assert ADDED[override] in message(override)


@pytest.mark.parametrize("overrides", RELATED, ids=" ".join)
def test_settings_that_do_not_go_together(overrides: tuple[str, ...]) -> None:
    assert RELATED[overrides] in message(*overrides)


ACCEPTED = (
    "checkpointing.best.monitor=val/mask_AP",
    "trainer.check_val_every_n_epoch=null",
    "trainer.val_check_interval=100",
    "data.classes.keep=[car,7]",
    "data.grey_bits=12",
)


@pytest.mark.parametrize("override", ACCEPTED)
def test_what_is_meant_is_accepted(override: str) -> None:
    check_settings(mistaken(override))


def test_an_option_of_a_group_may_have_any_package() -> None:
    overrides = ("data=lvis", "data.root=x", "+criterion=federated")
    check_settings(composed(("paths.run_dir=run", *overrides)), overrides)
    with pytest.raises(UserError, match="criterio"):
        check_settings(mistaken("+criterio=federated"), ["+criterio=federated"])


@pytest.mark.parametrize(
    ("text", "refers", "said"),
    [
        ("a: 1", False, "mygroup=x: nothing reads the settings 'mygroup'"),
        ("a: 128", True, None),
        ("_target_: torch.nn.Identity", False, None),
        ("# @package _global_\nepochz: 3", False, "nothing reads the settings 'epochz'"),
        ("# @package _global_\nshedule: {a: 3}", False, "did you mean schedule?"),
        ("# @package _global_\nmodel: {hidden: 64}", False, None),
    ],
)
def test_an_option_of_a_group_of_the_user_is_read(
    text: str, refers: bool, said: str | None, tmp_path: Path
) -> None:
    (tmp_path / "mygroup").mkdir()
    (tmp_path / "mygroup" / "x.yaml").write_text(text)
    overrides = ["+mygroup=x", *(["model.hidden=${mygroup.a}"] if refers else [])]
    searched = f"hydra.searchpath=[{tmp_path}]"
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = compose("train", ["paths.run_dir=run", searched, *overrides])
    if said is None:
        check_settings(cfg, overrides)
    else:
        with pytest.raises(UserError, match=re.escape(said)):
            check_settings(cfg, overrides)


READING = (
    "${mygroup.a}",
    "${mygroup}",
    "${ mygroup.a }",
    "${mygroup[a]}",
    "${..mygroup.a}",
    "${oc.select:mygroup.a}",
    '${oc.select:"mygroup.a",12}',
    "${oc.select: mygroup.a , 12}",
    "${oc.select:..mygroup.a,12}",
    "${oc.decode:${mygroup.text}}",
    "${oc.env:NO_SUCH_VARIABLE,${mygroup.text}}",
    "${oc.dict.values:mygroup}",
    "${mygroup.${oc.decode:a}}",
    "${oc.create:[${mygroup.a},${seed}]}",
    "a-${oc.select:mygroup.a}-b",
)
NOT_READING = ("${oc.select:mygroups.a,12}", "${oc.select:.mygroup.a,0}", "${seed}", "mygroup.a")


@pytest.mark.parametrize("value", [*READING, *NOT_READING])
def test_every_interpolation_reads_a_group_of_the_user(value: str) -> None:
    """A value reads the group where what it resolves to changes with it."""

    def resolved(number: int) -> str:
        group = {"a": number, "text": str(number)}
        cfg = OmegaConf.create({"mygroup": group, "seed": 0, "swept": {"mine": value}})
        return str(OmegaConf.to_container(cfg.swept, resolve=True))

    changes = resolved(1) != resolved(2)
    assert changes == (value in READING)
    held = {"mygroup": {"a": 1, "text": "1"}, "seed": 0, "swept": {"mine": value}}
    assert _is_referred_to(held, ("mygroup",)) == changes


def test_the_kinds_of_a_message_differ() -> None:
    assert message("checkpointing.last.every_minutes=0").count("null") == 1


def test_the_table_is_long() -> None:
    assert sum(len(values.split()) for values in NUMBERS.values()) > 250


NOT_A_NUMBER: tuple[Any, ...] = ("abc", "", {}, {"_target_": 3}, [], math.nan, math.inf, -math.inf)
IMPOSSIBLE: tuple[Any, ...] = (-1e18, 1e18, -(10**18), 10**18)
GROUPS = (
    *("model", "data", "augmentation", "evaluation", "optimizer", "schedule", "trainer"),
    *("callbacks", "debug"),
)


def chosen() -> Iterator[tuple[str, ...]]:
    """Ways to compose train.yaml, so that every option of each group is there."""
    yield ("data.teachers=[x.json]", f"scheme=[{','.join(options('scheme'))}]")
    yield (f"aux_heads=[{','.join(n for n in options('aux_heads') if n != 'rcnn_4conv1fc')}]",)
    yield ("aux_heads=[rcnn_4conv1fc]",)
    yield from zip(*map(_repeated, GROUPS), strict=True)
    for backbone in options("model/backbone"):
        yield (f"model/backbone={backbone}",)


def _repeated(group: str) -> list[str]:
    own, longest = options(group), max(len(options(name)) for name in GROUPS)
    return [f"{group}={own[i % len(own)]}" for i in range(longest)]


EXPERIMENTS = [
    pytest.param(name, marks=[pytest.mark.slow] if i % 8 else [])
    for i, name in enumerate(published())
]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_is_accepted(experiment: str) -> None:
    check_settings(base(f"experiment={experiment}", "data.teachers=[x.json]", "data.root=x"))


@pytest.mark.parametrize("overrides", list(chosen()), ids=" ".join)
def test_every_option_is_accepted_and_every_number_checked(overrides: tuple[str, ...]) -> None:
    cfg = base(*overrides)
    if not overrides[0].startswith("model/backbone="):  # alone, it has other levels
        check_settings(cfg)
    for key, value, kind in settings_of(OmegaConf.to_container(cfg), ()):
        if type(value) in (int, float):
            assert kind is not None, f"{'.'.join(key)}: write a rule for it in settings/rules.py"
            wrong = [*NOT_A_NUMBER, *IMPOSSIBLE]
            taken = [w for w in wrong if kind.takes(w) and not (w == "abc" and kind.takes("text"))]
            assert not taken, ".".join(key)
        elif isinstance(value, bool):
            assert kind is not None, ".".join(key)
            assert not any(map(kind.takes, (2, -1, "maybe", {}, [])))


@pytest.mark.parametrize("value", ["12", "2024", "1e3", "1_000", "0.5", "true", "-1"])
@pytest.mark.parametrize("key", ["name", "data.root", "paths.runs", "checkpoint", "ckpt_path"])
def test_a_number_is_a_name_of_a_file(key: str, value: str) -> None:
    cfg = mistaken(f"{key}={value}")
    check_settings(cfg, [f"{key}={value}"])
    assert OmegaConf.select(cfg, key) == value


def test_what_is_no_name_of_a_file_stays() -> None:
    cfg = mistaken("name=null", "data.root=null")
    names_as_text(cfg)
    assert cfg.name is cfg.data.root is None
    assert message("model.backbone.name=5") == "model.backbone.name=5: give a string"
    assert message("data.root=[2024]").startswith("data.root=[2024]: give the path of a file")
