"""The two data sets with file layouts of their own, from their configuration on."""

import json
import logging
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from codetr.conf_folder import conf_folder
from codetr.data.augment import Chain
from codetr.data.datamodule import CocoDataModule
from codetr.errors import UserError

CONF = conf_folder()


def _module(name: str, root: Path, classes: int, **options: Any) -> CocoDataModule:
    with hydra.initialize_config_dir(str(CONF / "data"), version_base="1.3"):
        config = hydra.compose(name)
    around = {
        "augmentation": {"train": {"_target_": "codetr.data.augment.Chain"}},
        "model": {"backbone": {"mean": [0, 0, 0], "std": [1, 1, 1]}},
        "seed": 0,
        "masks": None,
        "paths": {"data": str(root)},
        "data": config,
    }
    around["augmentation"]["eval"] = around["augmentation"]["train"]
    around = OmegaConf.create(around)
    around.data.root = str(root)
    around.data.source.num_classes = classes
    around.data.num_workers = 0
    around.data.update(options)
    return hydra.utils.instantiate(around.data)


def _save(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 10, 3), value, np.uint8)).save(path)


def _box(number: int, image: int, category: int) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": [1, 1, 4, 5],
        "area": 20,
        "segmentation": [[1, 1, 5, 1, 5, 6, 1, 6]],
    }


@pytest.fixture
def lvis(tmp_path: Path) -> Path:
    """Three training images, one of them with a rare class; validation images of both folders."""
    frames = {
        "train": [("train2017", 1), ("train2017", 2), ("train2017", 3)],
        "val": [("val2017", 4), ("train2017", 5)],
    }
    for split, images in frames.items():
        content = {
            "images": [
                {
                    "id": i,
                    "coco_url": f"http://images.cocodataset.org/{folder}/{i:012d}.jpg",
                    "height": 8,
                    "width": 10,
                    "neg_category_ids": [],
                    "not_exhaustive_category_ids": [],
                }
                for folder, i in images
            ],
            "annotations": [_box(10 + i, i, 1 if i != 2 else 2) for _, i in images],
            "categories": [
                {"id": 1, "name": "cup", "synset": "cup.n.01", "frequency": "f"},
                {"id": 2, "name": "yak", "synset": "yak.n.01", "frequency": "r"},
            ],
        }
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / f"annotations/lvis_v1_{split}.json").write_text(json.dumps(content))
        for folder, i in images:
            _save(tmp_path / folder / f"{i:012d}.jpg", 20 * i)
    return tmp_path


def test_lvis_finds_images_and_repeats_rare_classes(lvis: Path) -> None:
    module = _module(
        "lvis", lvis, 2, repeat={"_target_": "codetr.data.repeat.RepeatFactor", "threshold": 1.0}
    )
    module.setup("fit")
    assert module.classes.names == ("cup", "yak")
    assert [Path(module.eval_dataset[i].path).parts[-2] for i in (0, 1)] == ["val2017", "train2017"]
    seen = [key.image for key in module.train_dataloader().sampler]
    assert sorted(seen[:6]) == [0, 0, 1, 1, 2, 2]  # ceil(sqrt(3 / 2)) = ceil(sqrt(3)) = 2
    assert module.train_dataset[1].targets.labels.tolist() == [1]
    assert module.train_dataset[1].targets.masks is None


def test_lvis_configuration_is_the_recipe(lvis: Path) -> None:
    module = _module("lvis", lvis, 2)
    assert module.repeat is not None
    assert module.repeat.threshold == 1e-3
    assert module.split("train").annotations.is_file()
    with pytest.raises(UserError, match=r"has 2 classes, not 1203: .*num_classes=null"):
        _module("lvis", lvis, 1203).setup("fit")
    with hydra.initialize_config_dir(str(CONF / "data"), version_base="1.3"):
        assert hydra.compose("lvis").source.num_classes == 1203
        assert hydra.compose("objects365").source.num_classes == 365


@pytest.fixture
def objects365(tmp_path: Path) -> Path:
    for split, folder in (("train", "v1/patch0"), ("val", "v2/patch16")):
        content = {
            "images": [
                {"id": i, "file_name": f"images/{folder}/{i}.jpg", "height": 8, "width": 10}
                for i in range(3)
            ],
            "annotations": [_box(10 + i, i, 1) for i in range(3)],
            "categories": [{"id": 1, "name": "Person"}, {"id": 2, "name": "Sneakers"}],
        }
        (tmp_path / "annotations").mkdir(exist_ok=True)
        path = tmp_path / f"annotations/zhiyuan_objv2_{split}.json"
        path.write_text(json.dumps(content))
        for i in range(3):
            _save(tmp_path / split / folder.split("/")[1] / f"{i}.jpg", 50)
    return tmp_path


def test_objects365_names_broken_images_and_goes_on(
    objects365: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = objects365 / "train/patch0/1.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    (objects365 / "train/patch0/2.jpg").unlink()
    module = _module("objects365", objects365, 2)
    with caplog.at_level(logging.WARNING):
        module.setup("fit")
        assert "1 of 3 image files are missing, the first is" in caplog.text
        samples = [module.train_dataset[i] for i in range(3)]
    assert str(broken) in caplog.text
    assert "patch0/2.jpg does not exist" in caplog.text
    assert [len(s.targets) for s in samples] == [1, 0, 0]
    assert all((s.image == 114).all() and s.size == (8, 10) for s in samples[1:])
    batch = next(iter(module.train_dataloader()))
    assert torch.isfinite(batch.images.pixels).all()


def test_broken_images_are_errors_where_they_are_not_tolerated(objects365: Path) -> None:
    (objects365 / "val/patch16/2.jpg").unlink()
    with pytest.raises(UserError, match="1 of 3 image files are missing"):
        _module("objects365", objects365, 2, tolerate_broken=False).setup("fit")
    for i in range(2):
        (objects365 / f"val/patch16/{i}.jpg").unlink()
    with pytest.raises(UserError, match="3 of 3 image files are missing"):
        _module("objects365", objects365, 2).setup("fit")


def test_no_mix_without_one_in_the_augmentation(objects365: Path) -> None:
    module = _module("objects365", objects365, 2)
    assert module.mix is None
    assert isinstance(module.train_augmentation, Chain)
