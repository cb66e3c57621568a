"""Which classes a file may name, and that what is checked is what is built."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf
from torch import nn

from codetr.checkpoints.experiment import build_record
from codetr.checkpoints.plain import MAX_DEPTH, MAX_VALUES, plain, plain_text
from codetr.checkpoints.trusted import NAMES, build_trusted, require_trusted, targets
from codetr.classes import ClassList
from codetr.conf_folder import conf_folder
from codetr.errors import UserError

CONF = conf_folder()
NEVER_IN_A_RECORD = {
    *("analysis", "callbacks", "checkpointing", "hydra", "logger"),
    *("optimizer", "schedule", "trainer"),
}
"""Groups that name classes of which nothing is built from a file."""
OF_COMMANDS = {"eval.yaml", "predict.yaml"}


def allowed(target: str) -> bool:
    try:
        require_trusted({"_target_": target}, "x.ckpt")
    except UserError:
        return False
    return True


@pytest.mark.parametrize(
    ("target", "trusted"),
    [
        ("codetr.data.augment.EvalResize", True),
        ("codetr.evaluation.lvis_evaluator", True),
        ("torch.nn.LayerNorm", True),
        ("torchvision.transforms.v2.ColorJitter", True),
        ("os.system", False),
        ("torch.load", False),
        ("torch.hub.load", False),
        ("functools.partial", False),
        ("hydra.utils.get_method", False),
        ("hydra.utils.instantiate", False),
        ("codetr.checkpoints.experiment.compose_train", False),
        ("codetr.checkpoints.trusted.instantiate", False),
        ("codetr.training.train.train", False),
        ("codetr.training.train.Path", False),
        ("codetr.evaluation.coco.Path", False),
        ("codetr.no.such.Thing", False),
        ("torch.nn.functional.relu", False),
        ("torch.nn.DataParallel", False),
        ("torchvision.transforms.v2.Lambda", False),
        ("codetrick.Thing", False),
        ("lightning.pytorch.Trainer", False),
        ("", False),
    ],
)
def test_parts_of_the_list_and_nothing_else(target: str, trusted: bool) -> None:
    assert allowed(target) is trusted


@pytest.mark.parametrize("target", [5, None, ["os.system"], {"_target_": "os.getcwd"}, True])
def test_a_name_that_is_no_text_is_refused(target: Any) -> None:
    with pytest.raises(UserError, match=r"x\.ckpt: asks to build"):
        require_trusted({"_target_": target}, "x.ckpt")


def test_a_name_is_found_at_any_depth() -> None:
    inside = {"a": [{"b": {"_target_": "os.getcwd"}}]}
    assert list(targets(inside)) == [(("a", 0, "b"), "os.getcwd")]
    with pytest.raises(UserError, match=r"x\.ckpt: asks to build 'os\.getcwd'.*trust=true"):
        require_trusted(inside, "x.ckpt")


def test_what_the_user_names_is_the_users_only_where_the_user_names_it() -> None:
    own = OmegaConf.create(
        {"part": "${other}", "other": [{"_target_": "os.getcwd"}], "broken": "${no.such}"}
    )
    named = {"_target_": "os.getcwd"}
    require_trusted({"other": [named]}, "x.ckpt", own)
    require_trusted({"part": [named]}, "x.ckpt", own)
    for elsewhere in (
        {"other": [{"_target_": "os.getpid"}]},
        {"other": named},
        {"other": [{"inside": named}]},
        {"broken": named},
        {"third": [named]},
        named,
    ):
        with pytest.raises(UserError):
            require_trusted(elsewhere, "x.ckpt", own)


def test_trust_builds_whatever_it_is_but_resolves_nothing() -> None:
    config = {"_target_": "collections.Counter"}
    with pytest.raises(UserError, match=r"collections\.Counter"):
        build_trusted(config, "x.ckpt")
    assert build_trusted(config, "x.ckpt", trust=True) == {}
    assert isinstance(build_trusted({"_target_": "torch.nn.ReLU"}, "x.ckpt"), nn.ReLU)
    for hidden in ({"a": "${oc.env:HOME}"}, {"a": ["\\${b}"]}, {"_target_": "${b}"}, {"${b}": 1}):
        with pytest.raises(UserError, match="is never resolved"):
            build_trusted(hidden, "x.ckpt", trust=True)


def test_only_plain_values_are_built_from() -> None:
    """OmegaConf's containers resolve what is read from them: one may differ at every look."""
    for foreign in (OmegaConf.create({"a": 1}), nn.ReLU(), {1.5: "a"}, {"a": {1, 2}}, b"a"):
        with pytest.raises(UserError, match="not a plain value"):
            plain(foreign, "x.ckpt", "record")
    given = {"a": [1, 2.5, None, True, "text"], "b": {"c": ("d",)}}
    copied = plain(given, "x.ckpt", "record")
    assert copied == {"a": [1, 2.5, None, True, "text"], "b": {"c": ["d"]}}
    assert copied["a"] is not given["a"]
    assert plain_text(["${a}"], "x.ckpt", "record") == ["${a}"]


def test_a_run_that_could_not_be_read_again_does_not_start() -> None:
    cfg = OmegaConf.create(
        {"data": {"root": "\\${a}", "mean": 1, "std": 1, "size_divisor": 1}}
        | {"augmentation": {"eval": None}}
    )
    with pytest.raises(UserError, match=r"this run: configuration\.data\.root holds"):
        build_record(cfg, ClassList(names=("${a}",), category_ids=(1,)))


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("value", [nested(MAX_DEPTH + 1), nested(5000), [0] * MAX_VALUES])
def test_what_is_too_deep_or_too_large_is_one_line(value: Any) -> None:
    with pytest.raises(UserError, match=r"x\.ckpt: its record is too (deep|large)") as caught:
        plain(value, "x.ckpt", "record")
    assert "\n" not in str(caught.value)
    plain(nested(MAX_DEPTH), "x.ckpt", "record")


@pytest.mark.parametrize(
    "config",
    [
        {"_target_": "torch.nn.LayerNorm"},
        {"_target_": "torch.nn.LayerNorm", "normalized_shape": "a", "_convert_": "nonsense"},
        {"_target_": "torch.nn.ReLU", "_partial_": "yes"},
        {"_target_": "torch.nn.ReLU", "_args_": 5},
        {"_target_": "torch.nn.ReLU", "inplace": "???"},
        "text",
    ],
)
def test_what_cannot_be_built_is_one_line(config: Any) -> None:
    with pytest.raises(UserError, match=r"x\.ckpt: describes something that cannot be") as caught:
        build_trusted(config, "x.ckpt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_name_of_the_list_is_there(name: str) -> None:
    found: Callable[..., Any] = get_object(name)
    assert callable(found)
    assert found.__module__.split(".")[0] in ("codetr", "torch", "torchvision")


@pytest.mark.parametrize(
    "file", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF))
)
def test_whatever_conf_names_in_a_record_is_on_the_list(file: Path) -> None:
    """So that no run of one's own needs trust=true, unless it names classes of one's own."""
    place = file.relative_to(CONF)
    if place.parts[0] in NEVER_IN_A_RECORD or str(place) in OF_COMMANDS:
        pytest.skip("of the program, not of a model")
    named = set(re.findall(r"_target_: *([\w.]+)", file.read_text("utf-8")))
    others = {"codetr.training", "codetr.inference"}
    outside = {name for name in named if ".".join(name.split(".")[:2]) in others}
    assert named - outside - NAMES == set()
    assert not outside or place.parts[0] in ("experiment", "debug") or place.name == "train.yaml"
