import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from codetr.conf_folder import conf_folder
from codetr.errors import UserError
from codetr.training.length import EpochsBySize

CONF = conf_folder()


def finetune(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(
            "train",
            ["experiment=finetune", "data.root=x", "num_classes=3", "paths.run_dir=x", *overrides],
        )


def test_the_images_seen_decide_within_bounds() -> None:
    rule = EpochsBySize(images_seen=40_000, at_least=12, at_most=100)
    sizes = [1, 300, 500, 1000, 3000, 10_000, 100_000]
    assert [rule(n) for n in sizes] == [100, 100, 80, 40, 13, 12, 12]


@pytest.mark.parametrize(
    "change", [{"images_seen": 0}, {"at_least": 0}, {"at_least": 101}, {"at_most": 11}]
)
def test_bad_bounds_are_errors(change: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"schedule\.epochs"):
        EpochsBySize(**({"images_seen": 40_000, "at_least": 12, "at_most": 100} | change))


def test_the_recipe_has_the_rule_and_takes_a_number_instead() -> None:
    cfg = finetune()
    assert OmegaConf.is_dict(cfg.schedule.epochs)
    assert instantiate(cfg.schedule.epochs)(300) == 100
    cfg.schedule.epochs = 7
    assert cfg.trainer.max_epochs == 7
    assert finetune("schedule.epochs=5").trainer.max_epochs == 5
    assert finetune("schedule.epochs.at_most=30").schedule.epochs.at_most == 30


def test_the_recipe_averages_stops_early_and_overfits_on_request() -> None:
    cfg = finetune()
    stop = instantiate(cfg.callbacks.early_stopping)
    assert (stop.monitor, stop.mode) == ("val/AP", "max")
    assert stop.monitor == cfg.checkpointing.best.monitor
    assert cfg.callbacks.ema is not None
    assert cfg.data.source._target_.endswith("CustomFolder")
    few = finetune("debug=overfit")
    assert few.data.num_images == 16
    assert few.data.eval_split == "train"
    assert few.data.train_augmentation == few.augmentation.eval
    assert few.schedule.epochs == 100
