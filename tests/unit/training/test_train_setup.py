import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from codetr.checkpoints.experiment import without_initial_weights
from codetr.checkpoints.files import RunRecord
from codetr.classes import ClassList
from codetr.conf_folder import conf_folder
from codetr.data.custom import CustomFolder
from codetr.errors import UserError
from codetr.overrides import adding
from codetr.run_folder import RunFolder
from codetr.settings import check_settings
from codetr.settings.check import RECORD_GROUPS
from codetr.training.csv_logger import CsvLogger
from codetr.training.recorded_config import as_built, with_run
from codetr.training.train import build_callbacks, build_loggers, configure_logging

CONF = str(conf_folder())


def composed(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(name, list(overrides))


def test_the_options_of_the_strategy_raise_no_warning(tmp_path: Path) -> None:
    options = composed("train", "trainer=ddp", "num_classes=1").trainer.strategy
    chosen = {key: options[key] for key in ("broadcast_buffers", "gradient_as_bucket_view")}
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            configure_logging()
            DistributedDataParallel(nn.Linear(1, 1), **chosen)
    finally:
        dist.destroy_process_group()
    assert [str(one.message) for one in told] == []


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


def evaluated(run: RunRecord, *given: str) -> DictConfig:
    """What ``eval.py checkpoint=x GIVEN`` builds its parts from."""
    overrides = adding(["checkpoint=x", "paths.run_dir=x", *given], RECORD_GROUPS)
    cfg = composed("eval", *overrides)
    check_settings(cfg, overrides, nulls=True)
    return as_built(with_run(cfg, run, overrides), cfg, overrides)


def custom_record(root: Path, *given: str) -> RunRecord:
    """Of a run on a folder of one's own."""
    cfg = composed(
        "train",
        "data=custom",
        "augmentation=detr_224",
        f"data.root={root}",
        "paths.run_dir=x",
        *given,
    )
    return replace(run_record(), config=OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("data.source.max_lost=0.75", 0.75),
        ("data.source.val=test", "test"),
        ("data.source.cache=elsewhere", "elsewhere"),
        ("data.cache=true", True),
        ("data.derived=elsewhere", "elsewhere"),
        ("data.grey_bits=null", None),
        ("data.classes.keep=null", None),
        ("data.eval_augmentation.short=64", 64),
        ("evaluation.postprocess.max_detections=7", 7),
        ("evaluation.masks=false", False),
    ],
)
def test_a_setting_replaces_that_of_the_record_and_nothing_beside_it(
    setting: str, value: object, tmp_path: Path
) -> None:
    run = custom_record(tmp_path, "data.grey_bits=12", "data.classes.keep=[a,b]")
    before = OmegaConf.to_container(evaluated(run))
    after: Any = OmegaConf.to_container(evaluated(run, setting))
    key = setting.partition("=")[0]
    assert OmegaConf.select(OmegaConf.create(after), key) == value
    restored = OmegaConf.create(after)
    OmegaConf.update(restored, key, OmegaConf.select(OmegaConf.create(before), key))
    assert before != after
    assert restored == before


def test_classes_are_chosen_key_by_key(tmp_path: Path) -> None:
    run = custom_record(tmp_path, "data.classes.rename={a: b}", "data.classes.merge={c: [d]}")
    classes = evaluated(run, "data.classes.keep=[b]", "data.classes.merge={e: [f]}").data.classes
    assert classes == {"keep": ["b"], "rename": {"a": "b"}, "merge": {"e": ["f"]}}


def test_the_size_of_images_is_changed_by_either_name(tmp_path: Path) -> None:
    run = custom_record(tmp_path)
    for key in ("augmentation.eval", "data.eval_augmentation"):
        full = evaluated(run, f"{key}.short=64")
        assert full.data.eval_augmentation == {**evaluated(run).data.eval_augmentation, "short": 64}


def test_a_record_of_an_earlier_version_takes_what_it_lacks(tmp_path: Path) -> None:
    run = custom_record(tmp_path)
    for key in ("grey_bits", "classes", "derived"):
        del run.config["data"][key]
    del run.config["data"]["source"]["max_lost"]
    given = ("data.source.max_lost=0.75", "data.grey_bits=12", "data.classes.keep=[a]")
    data = evaluated(run, *given).data
    assert (data.source.max_lost, data.grey_bits, data.classes.keep) == (0.75, 12, ["a"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("data.source.vall=test", r"data\.source\.vall: .*did you mean val"),
        ("data.source.outside=true", r"data\.source\.outside: CustomFolder takes no 'outside'"),
        ("data.source.val_share=x", r"data\.source\.val_share=x: give"),
        ("data.eval_spit=train", r"data\.eval_spit: .*did you mean eval_split"),
        (
            "data.eval_split=test",
            r"give train or val; .*another split, .*source\.val=NAME",
        ),
        ("data.classes.kep=[a]", r"data\.classes\.kep: .*did you mean data\.classes\.keep"),
        ("augmentation.evl.short=3", r"augmentation\.evl\.short: nothing reads"),
        ("evaluation.postproces.max_detections=3", r"evaluation\.postproces\.max_detections: noth"),
    ],
)
def test_a_setting_that_the_record_does_not_take_is_an_error(
    given: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        evaluated(custom_record(tmp_path), given)


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
