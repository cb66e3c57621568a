"""Which classes a file may name."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from torch import nn

from codetr.checkpoints.trusted import build_trusted, is_trusted, require_trusted
from codetr.errors import UserError

CONF = Path(__file__).resolve().parents[3] / "conf"
GROUPS = ("augmentation", "aux_heads", "criterion", "data", "evaluation", "model", "scheme")


@pytest.mark.parametrize(
    ("target", "trusted"),
    [
        ("codetr.data.augment.EvalResize", True),
        ("codetr.evaluation.lvis_evaluator", True),
        ("torch.nn.LayerNorm", True),
        ("torchvision.transforms.v2.ColorJitter", True),
        ("os.system", False),
        ("torch.load", False),
        ("codetr.checkpoints.experiment.compose_train", False),
        ("codetr.training.app.train", False),
        ("codetr.training.app.Path", False),
        ("codetr.no.such.Thing", False),
        ("torch.nn.functional.relu", False),
        ("codetrick.Thing", False),
        ("lightning.pytorch.Trainer", False),
    ],
)
def test_classes_of_this_package_and_few_others(target: str, trusted: bool) -> None:
    assert is_trusted(target) is trusted


def test_a_name_is_found_at_any_depth_and_behind_interpolation() -> None:
    inside = {"a": [{"b": {"_target_": "os.getcwd"}}]}
    behind = OmegaConf.create({"part": {"a": "${hidden}"}, "hidden": {"_target_": "os.getcwd"}})
    for config in (inside, behind.part):
        with pytest.raises(UserError, match=r"x\.ckpt: wants to build 'os\.getcwd'.*trust=true"):
            require_trusted(config, "x.ckpt")


def test_what_the_user_names_is_not_the_files() -> None:
    config = {"part": {"_target_": "os.getcwd"}}
    require_trusted(config, "x.ckpt", {"other": [{"_target_": "os.getcwd"}]})
    with pytest.raises(UserError):
        require_trusted(config, "x.ckpt", {"other": [{"_target_": "os.getpid"}]})


def test_trust_builds_whatever_it_is() -> None:
    config = {"_target_": "collections.Counter"}
    with pytest.raises(UserError, match=r"collections\.Counter"):
        build_trusted(config, "x.ckpt")
    assert build_trusted(config, "x.ckpt", trust=True) == {}
    assert isinstance(build_trusted({"_target_": "torch.nn.ReLU"}, "x.ckpt"), nn.ReLU)


@pytest.mark.parametrize("group", GROUPS)
def test_whatever_conf_builds_a_detector_and_its_data_from_is_trusted(group: str) -> None:
    """So that no run of one's own needs trust=true, unless it names classes of one's own."""
    files = sorted((CONF / group).rglob("*.yaml"))
    named = {t for f in files for t in re.findall(r"_target_: *([\w.]+)", f.read_text("utf-8"))}
    assert named
    assert {target for target in named if not is_trusted(target)} == set()
