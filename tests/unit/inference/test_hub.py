"""What is published of a run: enough to use the model again, and no folder of its author."""

import json

import pytest
from hydra import compose, initialize_config_dir
from tiny_checkpoint import CLASSES, TINY

from codetr.checkpoints.experiment import build_record, compose_train
from codetr.checkpoints.files import RunRecord
from codetr.conf_folder import conf_folder
from codetr.inference.hub import USED, published
from codetr.training.recorded_config import with_run

CONF = conf_folder()
SECRET = "/home/author/secret"


def record(*overrides: str) -> RunRecord:
    """Of a run whose every folder and file lies in ``SECRET``."""
    folders = {
        "paths.run_dir": "runs/a",
        "paths.data": "data",
        "data.root": "pictures",
        "model.backbone.weights": "w.pth",
        "checkpoint": "a.ckpt",
    }
    absolute = [f"{key}={SECRET}/{name}" for key, name in folders.items()]
    return build_record(compose_train([*TINY, *absolute, *overrides]), CLASSES)


@pytest.mark.parametrize(
    "data",
    [
        ("data=custom",),
        (
            "data=coco",
            f"data.source.train_annotations={SECRET}/a.json",
            f"data.teachers=[{SECRET}/t.json]",
        ),
    ],
)
def test_no_folder_of_the_author_is_published(data: tuple[str, ...]) -> None:
    own = record(*data)
    assert json.dumps(own.as_dict()).count(SECRET) > 5
    found = published(own)
    assert SECRET not in json.dumps(found.as_dict())
    assert set(found.config) <= set(USED)
    assert found.config["model"]["detector"]["backbone"]["weights"] is None
    assert found.config["evaluation"] == own.config["evaluation"]
    assert found.preprocessing == own.preprocessing


def test_relative_files_go_too_and_names_inside_the_data_stay() -> None:
    found = published(
        record("data=coco", "data.root=mine", "data.teachers=[t.json]", "data.source.val_images=v")
    )
    assert (found.config["data"]["root"], found.config["data"]["teachers"]) == (None, [])
    assert found.config["data"]["source"]["val_images"] == "v"


def test_what_is_published_can_be_evaluated() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("eval", ["checkpoint=x", "paths.run_dir=x", "data.root=here"])
    own = record("data=custom")
    full = with_run(cfg, published(own))
    assert full.data.root == "here"
    assert full.model.detector.decoder == own.config["model"]["detector"]["decoder"]
    assert full.evaluation.postprocess == own.config["evaluation"]["postprocess"]
