import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from codetr.checkpoints.files import RunRecord
from codetr.classes import ClassList
from codetr.conf_folder import conf_folder
from codetr.data.custom import CustomFolder
from codetr.errors import UserError
from codetr.run_folder import RunFolder
from codetr.training.evaluate import require_known_classes, with_run, without_initial_weights
from codetr.training.loggers import CsvLogger
from codetr.training.train import build_callbacks, build_loggers, configure_logging

CONF = str(conf_folder())


def composed(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(name, list(overrides))


def test_no_auxiliary_head_is_an_empty_dict() -> None:
    assert composed("train", "aux_heads=[]").aux_heads == {}
    assert list(composed("train", "aux_heads=[atss]").aux_heads) == ["atss"]


@pytest.mark.parametrize("name", sorted(p.stem for p in Path(CONF, "schedule").glob("*.yaml")))
def test_schedules_set_the_length_of_training(name: str) -> None:
    cfg = composed("train", f"schedule={name}")
    assert cfg.trainer.max_epochs == cfg.schedule.epochs
    assert name == "finetune" or cfg.schedule.epochs > 0  # finetune's follows from the data


@pytest.mark.parametrize("name", sorted(p.stem for p in Path(CONF, "debug").glob("*.yaml")))
def test_debug_settings_change_the_trainer(name: str) -> None:
    assert composed("train", f"debug={name}").trainer != composed("train").trainer


def test_csv_is_always_among_the_loggers(tmp_path: Path) -> None:
    cfg = composed("train", "logger=[]", f"paths.run_dir={tmp_path}")
    assert [type(logger) for logger in build_loggers(cfg)] == [CsvLogger]


def test_without_validation_there_is_no_best_checkpoint(tmp_path: Path) -> None:
    cfg = composed("train", f"paths.run_dir={tmp_path}", "callbacks.preview=null")
    names = [type(callback).__name__ for callback in build_callbacks(cfg)]
    assert names[:2] == ["SafePoints", "BestResult"]
    assert names[-2:] == ["ModelCheckpoint", "LastCheckpoint"]
    assert "TrainingPreview" not in names
    cfg.trainer.limit_val_batches = 0
    assert "ModelCheckpoint" not in [type(c).__name__ for c in build_callbacks(cfg)]


def test_resuming_within_an_epoch_is_no_reason_for_a_warning() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        configure_logging()
        warnings.warn("it ended before and your dataloader is not resumable. Use", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert [str(warning.message) for warning in told] == ["something else"]


def test_weights_of_epochs_lie_where_half_written_files_are_removed(tmp_path: Path) -> None:
    cfg = composed("train", "checkpointing=every_epoch", f"paths.run_dir={tmp_path}")
    assert Path(cfg.checkpointing.epochs.dirpath) == RunFolder(tmp_path).epochs


def run_record() -> RunRecord:
    cfg = composed("train", "data.root=here", "data.size_divisor=32", "paths.run_dir=x")
    config = OmegaConf.to_container(cfg, resolve=True)
    return RunRecord(
        classes=ClassList(names=("a", "b"), category_ids=(1, 5)),
        preprocessing={"mean": [1, 2, 3], "std": [4, 5, 6], "size_divisor": 32, "resize": {}},
        config=config,  # type: ignore[arg-type]
    )


def test_evaluation_takes_the_run_and_changes_what_it_is_told() -> None:
    plain = with_run(composed("eval", "checkpoint=x", "paths.run_dir=x"), run_record())
    assert plain.data.root == "here"
    assert plain.data.eval_split == "val"
    overrides = ["checkpoint=x", "paths.run_dir=x", "data.eval_split=train", "data.root=there"]
    changed = with_run(composed("eval", *overrides), run_record())
    assert plain.data.get("grey_bits") is None
    told = ("checkpoint=x", "paths.run_dir=x", "data.classes.keep=[a]", "data.grey_bits=12")
    read = with_run(composed("eval", *told), run_record()).data
    assert list(read.classes.keep) == ["a"]
    assert read.grey_bits == 12
    assert (changed.data.root, changed.data.eval_split) == ("there", "train")
    assert changed.data.source == plain.data.source


def test_runs_on_custom_data_that_recorded_a_key_which_is_gone(tmp_path: Path) -> None:
    old = composed("train", "data=custom", f"data.root={tmp_path}", "paths.run_dir=x")
    OmegaConf.update(old, "data.source.num_train", None, force_add=True)
    config = OmegaConf.to_container(old, resolve=True)
    record = replace(run_record(), config=config)  # type: ignore[arg-type]
    full = with_run(composed("eval", "checkpoint=x", "paths.run_dir=x"), record)
    assert isinstance(instantiate(full.data.source), CustomFolder)
    built_in = with_run(composed("eval", "checkpoint=x", "paths.run_dir=x"), run_record())
    assert built_in.data.source.num_train == 2000


def test_normalisation_belongs_to_the_weights() -> None:
    overrides = ["checkpoint=x", "paths.run_dir=x", "data=coco", "data.root=there"]
    other = with_run(composed("eval", *overrides), run_record())
    assert other.data.source._target_.endswith("CocoFolder")
    assert (other.data.mean, other.data.std, other.data.size_divisor) == ([1, 2, 3], [4, 5, 6], 32)
    with pytest.raises(UserError, match=r"data\.root"):
        with_run(composed("eval", *overrides[:3]), run_record())


def test_evaluation_fetches_no_backbone_weights() -> None:
    detector = OmegaConf.create({"backbone": {"name": "r", "pretrained": True, "weights": "f"}})
    changed = without_initial_weights(detector)
    assert changed.backbone == {"name": "r", "pretrained": False, "weights": None}
    assert detector.backbone.pretrained is True


def test_data_may_lack_classes_but_not_rename_them() -> None:
    model = ClassList(names=("a", "b"), category_ids=(1, 5))
    require_known_classes(ClassList(names=("b",), category_ids=(5,)), model, Path("v.json"))
    for other in (
        ClassList(names=("a",), category_ids=(5,)),
        ClassList(names=("a",), category_ids=(2,)),
    ):
        with pytest.raises(UserError, match=r"v\.json: category \d is 'a'"):
            require_known_classes(other, model, Path("v.json"))
