"""Keys of earlier versions: each leads to one that exists, and the command line names it."""

import sys

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from codetr.checkpoints.experiment import compose_train
from codetr.commands import train
from codetr.conf_folder import conf_folder
from codetr.errors import UserError
from codetr.moved_keys import MOVED_KEYS, SPLIT, present_key, require_present_keys


@pytest.mark.parametrize("new", MOVED_KEYS.values())
def test_present_keys_exist(new: str) -> None:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        assert OmegaConf.select(compose("train"), new) is not None


@pytest.mark.parametrize("old", [*MOVED_KEYS, "model.transformer", "model.query_head"])
def test_earlier_keys_are_gone(old: str) -> None:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        assert OmegaConf.select(compose("train"), old) is None


@pytest.mark.parametrize("group", SPLIT)
def test_earlier_groups_are_gone(group: str) -> None:
    assert not (conf_folder() / group).exists()
    with pytest.raises(UserError, match=rf"\+{group}=x: there is no {group} any more: give "):
        require_present_keys([f"+{group}=x"])


@pytest.mark.parametrize(
    ("key", "present"),
    [
        ("model.query_head.criterion.cls", "supervision.criterion.cls"),
        ("model.transformer.encoder.layer.dim", "model.encoder.layer.dim"),
        ("model.regions", "supervision.regions"),
        ("model.regions_of_mine", "model.regions_of_mine"),
        ("model.encoder.offset", "model.encoder.offset"),
    ],
)
def test_what_lies_below_moves_too(key: str, present: str) -> None:
    assert present_key(key) == present


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("model.denoising_queries=6", "model.denoising_queries has moved: give supervision.den"),
        ("+model.regions.fc_dim=6", "give supervision.regions.fc_dim"),
        ("~model.query_head", "there is no model/query_head any more: give supervision"),
        ("scheme.hybrid.matcher.cls=1", "share one matcher: give supervision.matcher.cls"),
    ],
)
def test_a_command_line_with_an_earlier_key_names_the_present_one(
    argument: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(UserError, match=message):
        compose_train([argument])
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=1,2", argument])
    with pytest.raises(SystemExit):
        train.main()
    assert capsys.readouterr().err.count("\n") == 1


def test_present_keys_pass() -> None:
    require_present_keys(
        [
            "--cfg",
            "job",
            "model.neck.bias=true",
            "scheme.mixed.criterion.cls=1",
            "model=dino_4scale",
        ]
    )
    require_present_keys(["scheme.hybrid.matcher={_target_: x}", "checkpoint=model/neck=x"])
