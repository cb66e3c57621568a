"""File names that Hydra's grammar does not know arrive as they were typed."""

import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from codetr.checkpoints.experiment import compose_train
from codetr.commands.start import start
from codetr.overrides import adding, readable

PARSER = OverridesParser.create()


@pytest.mark.parametrize(
    "value",
    [
        "/home/müller/größe (1)",
        "IMG (1).jpg",
        "IMG(1).jpg",
        "photos [new]/**/*.jpg",
        "epoch=3.ckpt",
        "~/pictures",
        "写真/é",
        "Ann's (2)\\",
        "größe, klein",
        "plain/path-1.jpg",
    ],
)
@pytest.mark.parametrize("key", ["source", "data.root", "+model.backbone.weights"])
def test_a_path_is_read_as_it_is(key: str, value: str) -> None:
    [argument] = readable([f"{key}={value}"])
    override = PARSER.parse_override(argument)
    assert (override.key_or_group, override.value()) == (key.lstrip("+"), value)
    assert readable([argument]) == [argument], "what is read may be repeated"


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
def test_any_path_is_read_as_it_is(name: str) -> None:
    """A folder above keeps it from looking like a number, a list or a function."""
    value = f"/ü/{name}"
    assert PARSER.parse_override(readable([f"source={value}"])[0]).value() == value


@pytest.mark.parametrize(
    "argument",
    [
        "aux_heads=[],[atss],[atss,rcnn]",
        "seed=0,1",
        "seed=range(3)",
        "optimizer.lr=1e-4",
        "scheme.collaborative={lambda_1:0,lambda_2:2}",
        "source='größe (1)'",
        "name=${now:%Y}",
        "~callbacks.ema",
        "data.root=",
        "aux_heads=[atss",
        "seed=choice(1,(2)",
        "größe=1",
    ],
)
def test_all_else_is_left_to_hydra(argument: str) -> None:
    assert readable([argument]) == [argument]


def test_in_a_sweep_commas_separate_values() -> None:
    [argument] = readable(["data.root=/größe (1),/b,/c=3"], several=True)
    override = PARSER.parse_override(argument)
    assert override.is_choice_sweep()
    assert list(override.sweep_string_iterator()) == ["'/größe (1)'", "/b", "'/c=3'"]


def test_programs_and_python_take_such_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(Path("größe (1)/a=b"))
    argv = ["train.py", f"data.root={folder}", "seed=1", "hydra/job_logging=none"]
    argv = [*argv, f"hydra.run.dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", list(argv))
    found = []
    start("train", lambda cfg, given: found.extend([cfg.data.root, *given]))
    assert found[:3] == [folder, f"data.root='{folder}'", "seed=1"]
    assert sys.argv == argv, "DDP's processes read what was typed"
    assert compose_train([f"data.root={folder}"]).data.root == folder


def test_settings_of_a_record_may_be_new() -> None:
    told = ["data.source.val=test", "database.x=1", "++data.cache=true", "~data.boxes", "seed=1"]
    assert adding(told, ["data"]) == ["++data.source.val=test", *told[1:]]


@pytest.mark.parametrize("choice", ["data=coco", "+data=mine", "data@data=coco"])
def test_an_option_has_all_settings_of_its_group(choice: str) -> None:
    told = [choice, "data.source.val=test", "evaluation.masks=false"]
    assert adding(told, ["data", "evaluation"]) == [*told[:2], "++evaluation.masks=false"]
