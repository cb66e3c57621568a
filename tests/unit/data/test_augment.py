"""Oracle: paint a rectangle where a box is; after any augmentation the box still bounds it."""

import pickle
from dataclasses import replace
from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch.testing import assert_close

from codetr.conf_folder import conf_folder
from codetr.data import augment
from codetr.data.augment import (
    Augmentation,
    DetrAugmentation,
    EvalResize,
    FlipOnly,
    LsjAugmentation,
    LsjEval,
    PadToCanvas,
    RandomCrop,
    output_size,
    resize,
    without_tiny_boxes,
)
from codetr.data.resize import detr_size, fitted_size, resize_bilinear
from codetr.data.sample import BoxSet, Sample

CONF = conf_folder() / "augmentation"

AUGMENTATIONS: dict[str, Augmentation] = {
    "detr": DetrAugmentation([48, 56, 64], 110, [60, 70], 400, (30, 50)),
    "detr_crop": DetrAugmentation([64], 110, [60, 70], 400, (30, 50), crop_probability=1.0),
    "lsj": LsjAugmentation(96),
    "lsj_large": LsjAugmentation(96, ratio=(1.5, 2.0)),
    "lsj_eval": LsjEval(96),
    "eval": EvalResize(70, 120),
    "eval_antialias": EvalResize(40, 120, antialias=True),
    "flip": FlipOnly(),
    "crop": RandomCrop(20, 40),
}


def _boxes(*rows: list[float]) -> BoxSet:
    boxes = torch.tensor(rows).reshape(-1, 4)
    n = len(boxes)
    return BoxSet(boxes=boxes, labels=torch.arange(n) + 5, scores=1 - torch.arange(n) / 10)


def _painted() -> Sample:
    """Red, green and blue rectangles; the ground truth owns red, teachers green and blue."""
    image = torch.zeros(3, 60, 90, dtype=torch.uint8)
    rectangles = [[10, 20, 40, 44], [50, 5, 80, 30], [30, 35, 88, 58]]
    for channel, (x0, y0, x1, y1) in enumerate(rectangles):
        image[channel, y0:y1, x0:x1] = 255
    red, green, blue = ([float(v) for v in r] for r in rectangles)
    return Sample(
        image=image,
        targets=_boxes(red),
        teachers=(_boxes(green), _boxes(blue, red)),
        image_id=1,
        original_size=(60, 90),
    )


def _bound(mask: torch.Tensor) -> torch.Tensor:
    """xyxy of the True pixels of (H, W)."""
    y, x = mask.nonzero().T
    return torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()


def composed(name: str, *overrides: str) -> DictConfig:
    """The augmentation of this name, where train.yaml puts it."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose(name, overrides=list(overrides))
    return OmegaConf.create({"augmentation": config}).augmentation


@pytest.mark.parametrize("size", [(60, 90), (90, 60), (1, 7), (333, 500)])
@pytest.mark.parametrize(
    "name", ["detr", "detr_1024", "detr_1536", "detr_224", "flip", "lsj_1024", "none", "small"]
)
def test_evaluation_says_beforehand_how_large_images_become(
    name: str, size: tuple[int, int]
) -> None:
    augmentation: Augmentation = hydra.utils.instantiate(composed(name).eval)
    sample = replace(_painted(), image=torch.zeros(3, *size, dtype=torch.uint8))
    assert output_size(augmentation, size) == augmentation(sample).size


@pytest.mark.parametrize("name", ["detr", "lsj", "flip", "crop"])
def test_random_augmentation_does_not_say_how_large_images_become(name: str) -> None:
    assert output_size(AUGMENTATIONS[name], (60, 90)) is None


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_boxes_bound_the_painted_pixels(name: str) -> None:
    seen = 0
    for seed in range(25):
        torch.manual_seed(seed)
        sample = AUGMENTATIONS[name](_painted())
        height, width = sample.size
        valid = sample.image.clone()
        valid[:, (sample.image == 114).all(dim=0)] = 0  # the padding of large-scale jitter
        sets = [sample.targets, *sample.teachers]
        assert len(sample.teachers) == 2
        for channel, boxes in enumerate(sets):
            assert ((boxes.boxes[:, 2:] - boxes.boxes[:, :2]) > 0).all()
            assert (boxes.boxes >= 0).all()
            assert (boxes.boxes <= torch.tensor([width, height] * 2) + 1e-4).all()
            own = boxes.boxes[boxes.labels == 5]
            mask = valid[channel] > 127
            if mask.any() and len(own):
                # Half a pixel of rounding per resize; DETR's recipe enlarges it by up to 64 / 30.
                tolerance = 1.7 if name.startswith("detr") else 1.01
                assert_close(own[0], _bound(mask), atol=tolerance, rtol=0)
                seen += 1
            elif mask.any():
                pytest.fail("painted pixels remain, but their box is gone")
        both = sample.teachers[1]
        red = both.labels == 6  # the red rectangle, second box of this teacher
        assert_close(both.boxes[red], sample.targets.boxes)
        assert_close(both.scores[red], torch.full((int(red.sum()),), 0.9))
    assert seen > 30


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_image_without_boxes(name: str) -> None:
    sample = _painted().with_box_sets((_boxes(), _boxes()))
    result = AUGMENTATIONS[name](sample)
    assert result.targets.boxes.shape == (0, 4)
    assert result.image.dtype == torch.uint8


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_input_stays_and_augmentation_travels_to_workers(name: str) -> None:
    sample, same = _painted(), _painted()
    pickle.loads(pickle.dumps(AUGMENTATIONS[name]))(sample)
    assert sample.image.equal(same.image)
    assert sample.targets.boxes.equal(same.targets.boxes)


@pytest.mark.parametrize("antialias", [False, True])
def test_every_resize_of_a_recipe_is_of_one_kind(
    antialias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of training, before and after the crop, and that of evaluation."""
    kinds = []

    def spy(image, size, kind, window=None):
        kinds.append(kind)
        return resize_bilinear(image, size, kind, window)

    monkeypatch.setattr(augment, "resize_bilinear", spy)
    for name in ("detr", "detr_1024", "detr_1536", "detr_224", "small"):
        config = composed(name, f"antialias={antialias}", "train.crop_probability=1")
        for part in ("train", "eval"):
            hydra.utils.instantiate(config[part])(_painted())
    assert kinds == [antialias] * 15


def test_detr_cuts_the_long_side_off() -> None:
    assert detr_size((480, 640), 800, 1333) == (800, 1066)
    assert detr_size((640, 480), 800, 1333) == (1066, 800)
    assert detr_size((427, 640), 800, 1333) == (800, 1199)
    assert detr_size((426, 640), 800, 1200) == (799, 1200)
    assert detr_size((100, 1000), 800, 1333) == (133, 1330)
    assert detr_size((2, 1000), 100, 100) == (1, 500)
    assert detr_size((300, 300), 224, 336) == (224, 224)
    assert EvalResize(800, 1333, antialias=True).output_size((480, 640)) == (800, 1066)
    assert EvalResize(800, 1333).output_size((480, 640)) == (800, 1067)


def test_fitted_size_is_the_official_rounding() -> None:
    assert fitted_size((480, 640), 800, 1333) == (800, 1067)
    assert fitted_size((424, 640), 800, 1333) == (800, 1208)
    assert fitted_size((427, 640), 1280, 2048) == (1280, 1919)
    assert fitted_size((100, 1000), 800, 1333) == (133, 1333)
    assert fitted_size((2, 1000), 100, 100) == (1, 100)


def test_scale_is_recorded_per_axis_and_accumulates() -> None:
    sample = resize(resize(_painted(), (30, 90)), (40, 30))
    assert sample.scale == pytest.approx((30 / 90, 40 / 60))
    assert sample.original_size == (60, 90)


def test_detr_sizes_obey_the_recipe() -> None:
    augmentation = DetrAugmentation([48, 56, 64], 80, [60], 400, (30, 50))
    shapes = set()
    for _ in range(60):
        height, width = augmentation(_painted()).size
        assert max(height, width) <= 80
        shapes.add((height, width))
    plain = {fitted_size((60, 90), short, 80) for short in (48, 56, 64)}
    assert plain <= shapes  # the half without a crop
    assert shapes - plain  # the half with one


def test_lsj_fills_the_canvas_and_drops_tiny_boxes() -> None:
    sample = LsjAugmentation(64, min_box_px=1e-2)(_painted())
    assert sample.size == (64, 64)
    padded = PadToCanvas(100)(_painted()).image
    assert (padded[:, 60:] == 114).all()
    assert (padded[:, :, 90:] == 114).all()
    assert padded[:, :60, :90].equal(_painted().image)
    tiny = _painted().with_box_sets((_boxes([1, 1, 1.005, 9], [1, 1, 1.02, 9], [3, 1, 3, 9]),))
    assert without_tiny_boxes(tiny, 1e-2).targets.labels.tolist() == [6]
    assert without_tiny_boxes(tiny).targets.labels.tolist() == [5, 6]


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_configuration_works(path: Path) -> None:
    config = composed(path.stem)
    assert set(config) - {"mix", "antialias"} == {"train", "eval"}
    for part in ("train", "eval"):
        sample = hydra.utils.instantiate(config[part])(_painted())
        assert sample.image.dtype == torch.uint8
        assert len(sample.teachers) == 2
