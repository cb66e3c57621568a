"""eval.py builds what a checkpoint names only where it is of codetr, or the user says so."""

import sys
from pathlib import Path

import pytest
from commands import write_coco
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from tiny_checkpoint import TINY

import codetr
from codetr.checkpoints.experiment import build_record, compose_train
from codetr.checkpoints.files import DetectorFile, write_detector_file
from codetr.classes import ClassList
from codetr.conf_folder import conf_folder
from codetr.errors import UserError
from codetr.training.evaluate import evaluate

OWN_CLASS = """
from dataclasses import dataclass

@dataclass
class Keep:
    short: int = 0

    def __call__(self, sample):
        return sample
"""


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose evaluation resizes by a class of the user's own."""
    (tmp_path / "of_my_own.py").write_text(OWN_CLASS)
    monkeypatch.syspath_prepend(tmp_path)
    write_coco(tmp_path / "coco", {"a.png": [[8, 8, 20, 24]]})
    options = ["data=coco", f"data.root={tmp_path / 'coco'}", "num_classes=1", "augmentation=none"]
    cfg = compose_train([*TINY, *options])
    cfg.augmentation.eval = {"_target_": "of_my_own.Keep"}
    path = tmp_path / "model.safetensors"
    record = build_record(cfg, ClassList(names=("thing",), category_ids=(7,)))
    detector = instantiate(cfg.model.detector)
    write_detector_file(path, DetectorFile(weights=detector.state_dict(), record=record))
    return path


def evaluated(checkpoint: Path, *overrides: str) -> dict[str, float]:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        quick = ["trainer=cpu", "data.num_workers=0", f"paths.run_dir={checkpoint.parent}"]
        cfg = compose("eval", [f"checkpoint={checkpoint}", *quick, *overrides])
    return evaluate(cfg)


def test_a_foreign_class_is_refused_before_it_is_imported(checkpoint: Path) -> None:
    sys.modules.pop("of_my_own", None)
    with pytest.raises(UserError) as caught:
        evaluated(checkpoint)
    message = str(caught.value)
    assert message.startswith(f"{checkpoint}: asks to build 'of_my_own.Keep'")
    assert "trust=true" in message
    assert "\n" not in message
    assert "of_my_own" not in sys.modules
    with pytest.raises(UserError, match=r"of_my_own\.Keep"):
        codetr.load(checkpoint, device="cpu")


def test_a_class_of_ones_own_is_built_where_it_is_trusted(checkpoint: Path) -> None:
    assert 0 <= evaluated(checkpoint, "trust=true")["AP"] <= 1
    assert (checkpoint.parent / "panel.png").is_file()
    found = codetr.load(checkpoint, device="cpu", trust=True)
    assert len(found.predict(checkpoint.parent / "coco/val2017/a.png")) > 0


def test_what_the_user_chooses_needs_no_trust(checkpoint: Path) -> None:
    """The file's own resize is replaced; the trainer is no class of codetr."""
    assert (
        0
        <= evaluated(
            checkpoint, "augmentation=small", "data=coco", f"data.root={checkpoint.parent / 'coco'}"
        )["AP"]
        <= 1
    )
