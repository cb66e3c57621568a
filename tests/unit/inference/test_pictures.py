from pathlib import Path

import torch
from PIL import Image

from codetr.evaluation import Detections
from codetr.inference.draw import class_colour
from codetr.inference.pictures import batch_pictures, prediction_picture
from codetr.structures import Batch, ImageInfo, Images, Targets

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
    picture = prediction_picture(info, found, targets(), ["a", "b"], min_score=0.5)
    # Two cells, each of the image enlarged twice under a caption, with gaps of 4 around them.
    assert picture.shape[-1] == 2 * SIDE + 3 * 4
    top = picture.shape[-2] - 4 - SIDE
    left, right = picture[:, top:, 4:], picture[:, top:, 4 + SIDE + 4 :]
    assert has_colour(left, 2 * 20, 2 * 150, label=0)
    assert not has_colour(left, 2 * 200, 2 * 150, label=0)
    assert has_colour(right, SIDE // 4, SIDE // 2, label=1)
