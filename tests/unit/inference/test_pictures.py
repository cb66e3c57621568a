from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from codetr.classes import ClassList
from codetr.data.images import ImageError
from codetr.evaluation.encoding import decode, encode_segmentation
from codetr.evaluation.ground_truth import ImageTruth
from codetr.inference.draw import class_colour
from codetr.inference.pictures import (
    Comparison,
    EvaluationPanel,
    ObjectMasks,
    Panel,
    batch_pictures,
    compare,
    relabelled,
)
from codetr.masks import Masks
from codetr.structures import Batch, Detections, ImageInfo, Images, Targets

MEAN, STD = (100.0, 110.0, 120.0), (50.0, 60.0, 70.0)
GREY = torch.tensor([10, 20, 30], dtype=torch.uint8)
SIDE = 600
"""Large enough that nothing is enlarged for the labels."""


def has_colour(picture: torch.Tensor, x: int, y: int, label: int) -> bool:
    """Whether the class's colour is found within two pixels of a point."""
    patch = picture[:, max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3].flatten(1).T
    return bool((patch == torch.tensor(class_colour(label))).all(dim=1).any())


def targets() -> Targets:
    return Targets(
        boxes=torch.tensor([[0.5, 0.5, 0.5, 0.25]]),
        labels=torch.tensor([1]),
        weights=torch.ones(1),
        size=torch.tensor([SIDE, SIDE], dtype=torch.float32),
    )


def test_preview_undoes_the_normalisation_and_leaves_out_the_padding() -> None:
    pixels = (GREY.float() - torch.tensor(MEAN)) / torch.tensor(STD)
    images = Images(
        pixels=torch.nn.functional.pad(pixels[:, None, None].expand(3, SIDE, SIDE), (0, 50, 0, 70))[
            None
        ],
        padding=torch.zeros(1, SIDE + 70, SIDE + 50, dtype=torch.bool),
        sizes=torch.tensor([[SIDE, SIDE]]),
        padded_sizes=torch.tensor([[SIDE, SIDE]]),
    )
    [picture] = batch_pictures(Batch(images=images, targets=(targets(),)), ["a", "b"], MEAN, STD)
    assert picture.shape == (3, SIDE, SIDE)
    assert (picture[:, -1, -1] == GREY).all()
    assert has_colour(picture, SIDE // 4, SIDE // 2, label=1)


def test_panel_shows_confident_predictions_left_and_the_truth_right(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.new("RGB", (SIDE // 2, SIDE // 2), (10, 20, 30)).save(path)
    info = ImageInfo(
        image_id=1, original_size=(SIDE // 2, SIDE // 2), scale=(2.0, 2.0), path=str(path)
    )
    found = Detections(
        boxes_xyxy_px=torch.tensor([[20.0, 100, 120, 200], [200, 100, 280, 200]]),
        scores=torch.tensor([0.9, 0.1]),
        labels=torch.tensor([0, 0]),
    )
    picture = compare(info, found, targets(), ["a", "b"], min_score=0.5).picture()
    # Two cells, each of the image enlarged twice under a caption, with gaps of 4 around them.
    assert picture.shape[-1] == 2 * SIDE + 3 * 4
    top = picture.shape[-2] - 4 - SIDE
    left, right = picture[:, top:, 4:], picture[:, top:, 4 + SIDE + 4 :]
    assert has_colour(left, 2 * 20, 2 * 150, label=0)
    assert not has_colour(left, 2 * 200, 2 * 150, label=0)
    assert has_colour(right, SIDE // 4, SIDE // 2, label=1)


def nothing_found() -> Detections:
    return Detections(
        boxes_xyxy_px=torch.zeros(0, 4),
        scores=torch.zeros(0),
        labels=torch.zeros(0, dtype=torch.int64),
    )


def batch_of(*paths: Path) -> Batch:
    """Each image with the box of ``targets``."""
    count = len(paths)
    size = torch.tensor([[SIDE, SIDE]] * count)
    images = Images(
        pixels=torch.zeros(count, 3, SIDE, SIDE),
        padding=torch.zeros(count, SIDE, SIDE, dtype=torch.bool),
        sizes=size,
        padded_sizes=size,
    )
    infos = tuple(
        ImageInfo(image_id=i, original_size=(SIDE, SIDE), scale=(1.0, 1.0), path=str(path))
        for i, path in enumerate(paths)
    )
    return Batch(images=images, targets=(targets(),) * count, infos=infos)


def test_a_missing_image_is_named_and_the_next_one_takes_its_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, grey in (("a.png", 10), ("c.png", 20), ("d.png", 30)):
        Image.new("RGB", (SIDE, SIDE), (grey,) * 3).save(tmp_path / name)
    batch = batch_of(*(tmp_path / name for name in ("a.png", "b.png", "c.png", "d.png")))
    classes = ClassList(names=("a", "b"), category_ids=(1, 2))
    panel = Panel(images=2, columns=1, min_score=0.5)
    panel.add(batch, (nothing_found(),) * 4, classes, classes)
    assert "b.png" in caplog.text
    corners = [shown.picture()[0, -10, 10].item() for shown in panel._shown]
    assert corners == [10, 20]
    with pytest.raises(ImageError, match=r"b\.png"):
        compare(batch.infos[1], nothing_found(), targets(), ["a", "b"], 0.5).picture()


def test_true_boxes_of_a_subset_have_the_name_and_colour_of_their_class(tmp_path: Path) -> None:
    """The data has two of the model's four classes, in another order."""
    model = ClassList(names=("a", "b", "c", "d"), category_ids=(1, 2, 3, 4))
    data = ClassList(names=("c", "a"), category_ids=(3, 1))
    true = Targets(
        boxes=torch.full((3, 4), 0.5),
        labels=torch.tensor([1, 0, 1]),
        weights=torch.ones(3),
        size=torch.tensor([SIDE, SIDE], dtype=torch.float32),
    )
    names = [model.names[label] for label in relabelled(true, data, model).labels]
    assert names == [data.names[label] for label in true.labels]

    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "a.png")
    callback = EvaluationPanel(tmp_path / "panel.png", images=1, columns=1, min_score=0.5)
    trainer = SimpleNamespace(is_global_zero=True, datamodule=SimpleNamespace(classes=data))
    module, batch = SimpleNamespace(classes=model, evaluator=None), batch_of(tmp_path / "a.png")
    callback.on_test_batch_end(trainer, module, (nothing_found(),), batch, 0)  # type: ignore[arg-type]
    [shown] = callback.panel._shown
    picture = shown.picture()
    right = picture[:, picture.shape[-2] - 4 - SIDE :, 4 + SIDE + 4 :]
    assert has_colour(right, SIDE // 4, SIDE // 2, label=0)
    assert not has_colour(right, SIDE // 4, SIDE // 2, label=1)


def test_training_pictures_show_the_masks() -> None:
    masks = torch.zeros(1, SIDE + 8, SIDE + 4, dtype=torch.uint8)  # padded, as collating does
    masks[0, 250:350, 200:300] = 1
    images = Images(
        pixels=torch.zeros(1, 3, SIDE + 8, SIDE + 4),
        padding=torch.zeros(1, SIDE + 8, SIDE + 4, dtype=torch.bool),
        sizes=torch.tensor([[SIDE, SIDE]]),
        padded_sizes=torch.tensor([[SIDE + 8, SIDE + 4]]),
    )
    plain, tinted = (
        batch_pictures(Batch(images=images, targets=(one,)), ["a", "b"], MEAN, STD)[0].int()
        for one in (targets(), replace(targets(), masks=masks))
    )
    changed = (plain != tinted).any(dim=0)
    assert changed[251:349, 201:299].all()
    assert changed.sum() == 100 * 100 - int((~changed[250:350, 200:300]).sum())


def test_masks_of_a_comparison_are_layers_of_classes() -> None:
    found = Detections(
        boxes_xyxy_px=torch.tensor([[10.0, 10.0, 50.0, 50.0], [30.0, 30.0, 90.0, 90.0]]),
        scores=torch.tensor([0.9, 0.5]),
        labels=torch.tensor([1, 0]),
        cells=Masks(probabilities=torch.ones(2, 32, 32), scores=torch.tensor([0.9, 0.5])),
    )
    shown = Comparison(
        image=torch.zeros(3, 100, 100, dtype=torch.uint8),
        predicted=found,
        true_boxes=torch.zeros(0, 4),
        true_labels=torch.zeros(0, dtype=torch.int64),
        names=["a", "b"],
    )
    layer = shown.mask_layers()["predicted"]
    data = layer["mask_data"]
    assert (data[20, 20], data[40, 40], data[70, 70], data[5, 5]) == (2, 2, 1, 0)
    assert layer["class_labels"] == {0: "background", 1: "a", 2: "b"}
    assert replace(shown, predicted=replace(found, cells=None)).mask_layers() == {}


def truth(crowd: int) -> ImageTruth:
    """Two objects in an image of ``SIDE`` pixels a side, of class 1 and 0; the second may be a
    crowd region. Masks fill 100 x 100 pixels at the left and at the right.
    """
    bitmaps = torch.zeros(2, SIDE, SIDE, dtype=torch.uint8)
    bitmaps[0, 100:200, 50:150] = bitmaps[1, 100:200, 450:550] = 1
    masks = tuple(
        encode_segmentation([[x, 100, x + 100, 100, x + 100, 200, x, 200]], (SIDE, SIDE))
        for x in (50, 450)
    )
    assert torch.equal(decode(masks, (SIDE, SIDE)), bitmaps > 0)
    return ImageTruth(
        boxes_xywh_px=torch.tensor([[50.0, 100, 100, 100], [450, 100, 100, 100]]).double(),
        labels=torch.tensor([1, 0]),
        crowd=torch.tensor([0, crowd]),
        area=torch.tensor([1e4, 1e4]).double(),
        masks=masks,
    )


@pytest.mark.parametrize("crowd", [0, 1])
def test_true_masks_are_beside_the_predicted_ones(tmp_path: Path, crowd: int) -> None:
    """Not those of crowd regions; without masks the picture has none."""
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "a.png")
    classes = ClassList(names=("a", "b"), category_ids=(1, 2))
    batch, panels = batch_of(tmp_path / "a.png"), []
    for known in (None, {}, {0: truth(crowd)}):
        panels.append(Panel(images=1, columns=1, min_score=0.5))
        panels[-1].add(batch, (nothing_found(),), classes, classes, known)
    plain, other, tinted = (panel._shown[0].picture() for panel in panels)
    assert torch.equal(plain, other)
    left, right = (tinted != plain).any(dim=0).tensor_split(2, dim=1)
    assert not left.any()
    caption = tinted.shape[1] - SIDE - 8
    assert caption < 60
    changed = right.sum(dim=0) >= 90  # columns
    assert changed.sum() >= (190 if crowd == 0 else 95)
    assert changed.sum() <= (200 if crowd == 0 else 100)
    layers = panels[-1]._shown[0].mask_layers()
    assert set(layers) == {"true"}
    data = layers["true"]["mask_data"]
    assert (data[150, 100], data[150, 500], data[5, 5]) == (2, 1 - crowd, 0)
    assert panels[0]._shown[0].mask_layers() == {}


def test_classes_of_mask_layers_fit_a_byte() -> None:
    names = [f"class {i}" for i in range(1203)]
    bitmaps = torch.zeros(2, 10, 10, dtype=torch.bool)
    bitmaps[0, :5] = bitmaps[1, 5:] = True
    shown = Comparison(
        image=torch.zeros(3, 10, 10, dtype=torch.uint8),
        predicted=nothing_found(),
        true_boxes=torch.zeros(0, 4),
        true_labels=torch.zeros(0, dtype=torch.int64),
        names=names,
        masks=ObjectMasks(bitmaps=bitmaps, labels=torch.tensor([1200, 300])),
    )
    layer = shown.mask_layers()["true"]
    assert layer["mask_data"].max() < 128
    said = {layer["class_labels"][number] for number in layer["mask_data"].flatten().tolist()}
    assert said == {"class 1200", "class 300"}
