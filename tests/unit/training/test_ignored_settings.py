"""What a command would ignore is refused, with the key and what to give instead."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from codetr.checkpoints.experiment import compose_train
from codetr.conf_folder import conf_folder
from codetr.errors import UserError
from codetr.overrides import is_within, key_of
from codetr.training.evaluate import evaluate
from codetr.training.ignored_settings import (
    NOT_RECORDED,
    REMEDY,
    TRAINING,
    ignored_in_evaluation,
    require_effect,
)
from codetr.training.teacher_boxes import write_teacher_boxes

CONF = conf_folder()

OURS = ignored_in_evaluation("runs/a/best.ckpt", "official:")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model/backbone=resnet50", "model.backbone"),
        ("+trainer.max_steps=3", "trainer.max_steps"),
        ("~evaluation.max_detections", "evaluation.max_detections"),
        ("++data.root=a=b", "data.root"),
        ("data@other=coco", "data"),
    ],
)
def test_key_of_an_override(override: str, key: str) -> None:
    assert key_of(override) == key


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("trainer.limit_val_batches=4", "trainer.limit_test_batches"),
        ("data.batch_size=4", "data.eval_batch_size"),
        ("augmentation.train.flip=0", "leave it out"),
        ("optimizer.lr=1", "leave it out"),
        ("schedule=1x", "leave it out"),
        ("+trainer.max_steps=3", "leave it out"),
        ("scheme=[one_to_one]", "leave it out"),
        ("num_classes=3", "leave it out"),
    ],
)
def test_evaluation_refuses_settings_of_training(override: str, told: str) -> None:
    for run in (evaluate, write_teacher_boxes):
        cfg = OmegaConf.create({"checkpoint": "runs/a/best.ckpt"})
        with pytest.raises(UserError) as caught:
            run(cfg, [override])
        assert str(caught.value).startswith(f"{override}: changes nothing here: ")
        assert told in str(caught.value)


def test_teacher_boxes_refuse_settings_of_metrics() -> None:
    cfg = OmegaConf.create({"checkpoint": "runs/a/best.ckpt"})
    with pytest.raises(UserError, match=r"evaluation\.max_detections=\[1\]: changes nothing"):
        write_teacher_boxes(cfg, ["evaluation.max_detections=[1]"])


def test_evaluation_accepts_its_own_settings() -> None:
    given = [
        *("trainer=gpu", "trainer.precision=bf16-mixed", "trainer.limit_test_batches=4"),
        *("data=coco", "data.root=x", "data.eval_batch_size=1", "data.num_workers=0"),
        *("augmentation=detr", "augmentation.eval.short=640", "evaluation=soft_nms"),
        *("evaluation.max_detections=[1,10,1000]", "panel=null", "seed=1", "name=a"),
    ]
    require_effect(given, OURS)
    of_model = ["experiment=co_dino_5scale_r50_1x_coco", "scheme=[one_to_one]", "aux_heads=[]"]
    require_effect([*given, *of_model], ignored_in_evaluation("official:a.pth", "official:"))
    require_effect(["model.num_queries=300", "data.eval_batch_size=1"], NOT_RECORDED)


def test_every_key_is_one_that_training_has() -> None:
    cfg = compose_train(["data=coco", "data.root=x", "augmentation=lsj_1024"])
    of_lightning = {  # reached by +
        *("min_epochs", "max_steps", "min_steps", "max_time", "accumulate_grad_batches"),
        *("gradient_clip_algorithm", "val_check_interval"),
    }
    for key in {*TRAINING, *REMEDY} - {f"trainer.{name}" for name in of_lightning}:
        assert OmegaConf.select(cfg, key, default=cfg) is not cfg, key


def test_of_the_keys_that_evaluation_has_only_those_of_the_model_are_refused() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("eval", ["checkpoint=x", "trainer=ddp"])
    refused = {str(key) for key in cfg if is_within(str(key), OURS)}
    assert refused == {"optimizer", "scheme", "aux_heads", "num_classes"}
    assert cfg.trainer.limit_test_batches == 1.0
