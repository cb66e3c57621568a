"""``data.num_images``: a part of the training split, with which everything else stays as it is."""

import json
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from PIL import Image

from codetr.checkpoints.experiment import compose_train
from codetr.classes import ClassList
from codetr.conf_folder import conf_folder
from codetr.data.annotations import CocoAnnotations, load_annotations
from codetr.data.augment import Chain
from codetr.data.datamodule import CocoDataModule
from codetr.data.sources import CocoFolder
from codetr.errors import UserError

CONF = conf_folder()
FOLDER = CocoFolder(
    train_annotations="train.json",
    train_images="train",
    val_annotations="val.json",
    val_images="val",
)


def write_split(root: Path, name: str, number: int) -> None:
    """Images of 32 pixels with one box each, of three classes in turn; the first has none, the
    last is a crowd region.
    """
    (root / name).mkdir()
    for i in range(number):
        Image.new("RGB", (32, 32), (9 * i, 90, 200)).save(root / name / f"{i}.png")
    images = [
        {"id": 10 * i + 5, "file_name": f"{i}.png", "width": 32, "height": 32}
        for i in range(number)
    ]
    boxes = [
        {
            "id": i,
            "image_id": 10 * i + 5,
            "category_id": (7, 0, 3)[i % 3],
            "bbox": [2, 3, 10 + i, 12],
            "iscrowd": int(i == number - 1),
        }
        for i in range(1, number)
    ]
    categories = [{"id": 7, "name": "cup"}, {"id": 0, "name": "ant"}, {"id": 3, "name": "bat"}]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (root / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Seven of nine training images have objects."""
    write_split(tmp_path, "train", 9)
    write_split(tmp_path, "val", 3)
    return tmp_path


def test_they_are_spread_over_the_images_with_objects(root: Path) -> None:
    whole = load_annotations(root / "train.json")
    some = load_annotations(root / "train.json", num_images=3)
    assert [whole.file_names.index(name) for name in some.file_names] == [1, 4, 7]
    assert some.classes == whole.classes
    for place, index in enumerate([1, 4, 7]):
        ours, theirs = some.targets(place), whole.targets(index)
        assert torch.equal(ours.boxes, theirs.boxes)
        assert torch.equal(ours.labels, theirs.labels)
    assert load_annotations(root / "train.json", num_images=50).file_names == whole.file_names[1:8]


def test_none_stands_twice_in_large_files() -> None:
    count = 30_000
    corners = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    large = CocoAnnotations(
        path=Path("a.json"),
        classes=ClassList(names=("a",), category_ids=(1,)),
        image_ids=tuple(range(count)),
        written_ids=tuple(range(count)),
        file_names=("a.png",) * count,
        sizes=torch.full((count, 2), 9),
        boxes=corners.expand(count, 4),
        labels=torch.zeros(count, dtype=torch.int64),
        crowd=torch.zeros(count, dtype=torch.bool),
        sides=torch.full((count, 2), 2.0),
        area=torch.full((count,), 4.0),
        ignore=torch.zeros(count, dtype=torch.bool),
        annotation_ids=(0,) * count,
        offsets=torch.arange(count + 1),
    )
    for wanted in (count - 1, count - 7, 16):
        chosen = large.images_with_objects(wanted)
        assert len(set(chosen)) == wanted
        assert (chosen[0], chosen[-1]) == (0, count - 1)
    assert large.images_with_objects(2 * count) == list(range(count))
    assert large.images_with_objects(0) == []


def test_images_whose_boxes_have_no_area_are_not_chosen(root: Path) -> None:
    content = json.loads((root / "train.json").read_text())
    for annotation in content["annotations"][:6]:
        annotation["bbox"][2] = 0
    (root / "train.json").write_text(json.dumps(content))
    assert load_annotations(root / "train.json", num_images=5).file_names == ("7.png",)
    for annotation in content["annotations"]:
        annotation["bbox"][2] = 0
    (root / "train.json").write_text(json.dumps(content))
    assert len(load_annotations(root / "train.json", num_images=5)) == 9  # for the error to say


def test_an_unknown_image_is_the_same_error(root: Path) -> None:
    content = json.loads((root / "train.json").read_text())
    content["annotations"][3]["image_id"] = 4
    (root / "train.json").write_text(json.dumps(content))
    for wanted in (None, 2):
        with pytest.raises(
            UserError, match=r"annotation 4 .* has image_id 4, which is not a usable image"
        ):
            load_annotations(root / "train.json", num_images=wanted)


def test_classes_are_those_of_all_images(root: Path) -> None:
    """'thing' names 'cup' its parent: without its box, 'cup' would be taken for no class."""
    content = json.loads((root / "train.json").read_text())
    content["categories"].append({"id": 9, "name": "thing", "supercategory": "cup"})
    (root / "train.json").write_text(json.dumps(content))
    whole = load_annotations(root / "train.json")
    some = load_annotations(root / "train.json", num_images=1)
    assert 7 not in {some.classes.category_ids[label] for label in some.labels.tolist()}
    assert some.classes == whole.classes
    assert "cup" in some.classes.names


def test_training_and_validation_see_the_same_ones(root: Path) -> None:
    module = CocoDataModule(
        root, FOLDER, Chain(), Chain(), num_workers=0, num_images=4, eval_split="train"
    )
    module.setup("fit")
    assert len(module.train_dataset) == len(module.eval_dataset) == 4
    ids = {info.image_id for batch in module.val_dataloader() for info in batch.infos}
    assert ids == {info.image_id for batch in module.train_dataloader() for info in batch.infos}
    assert len(ids) == 4
    other = CocoDataModule(root, FOLDER, Chain(), Chain(), num_workers=0, num_images=4)
    other.setup("fit")
    assert len(other.eval_dataset) == 3


def test_no_image_is_no_choice(root: Path) -> None:
    with pytest.raises(UserError, match=r"data\.num_images=0"):
        CocoDataModule(root, FOLDER, Chain(), Chain(), num_images=0)


@pytest.mark.parametrize("data", sorted(path.stem for path in (CONF / "data").glob("*.yaml")))
def test_the_overfit_check_knows_all_data(data: str, tmp_path: Path) -> None:
    options = [f"data={data}", f"data.root={tmp_path}", "augmentation=detr", "debug=overfit"]
    module = instantiate(compose_train(options).data)
    assert (module.num_images, module.eval_split) == (16, "train")
    assert module.train_augmentation == module.eval_augmentation


def test_the_overfit_check_goes_with_the_recipe_for_data_of_ones_own() -> None:
    cfg = compose_train(["experiment=finetune", "data.root=x", "debug=overfit"])
    assert cfg.data.source._target_.endswith("CustomFolder")
    assert (cfg.schedule.epochs, cfg.trainer.effective_batch) == (100, None)
    assert cfg.data.train_augmentation == cfg.augmentation.eval
