from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image

from codetr.inference.draw import (
    class_colour,
    denormalise,
    draw_boxes,
    grid,
    save_png,
    side_by_side,
)

NAMES = ("square", "disc")


def _grey(height: int, width: int) -> torch.Tensor:
    return torch.full((3, height, width), 100, dtype=torch.uint8)


def _draw(image: torch.Tensor, box: list[float], label: int = 0, **options) -> torch.Tensor:
    scores = torch.tensor([0.5])
    return draw_boxes(image, torch.tensor([box]), torch.tensor([label]), NAMES, scores, **options)


def test_outline_lies_on_the_box_in_the_colour_of_the_class():
    drawn = _draw(_grey(480, 640), [100, 200, 300, 400], label=1)
    colour = torch.tensor(class_colour(1), dtype=torch.uint8)
    for y, x in ((300, 100), (300, 300), (400, 200), (200, 250)):
        assert torch.equal(drawn[:, y, x], colour)
    assert torch.equal(drawn[:, 300, 200], _grey(1, 1)[:, 0, 0])  # the inside stays


def test_small_images_are_enlarged_by_an_integer_and_boxes_with_them():
    drawn = _draw(_grey(96, 128), [10, 60, 50, 80])
    assert drawn.shape == (3, 384, 512)
    colour = torch.tensor(class_colour(0), dtype=torch.uint8)
    assert torch.equal(drawn[:, 280, 40], colour)
    assert torch.equal(drawn[:, 280, 200], colour)


def test_large_images_keep_their_size_and_the_input_is_not_edited():
    image = _grey(500, 700)
    assert _draw(image, [10, 10, 50, 50]).shape == image.shape
    assert torch.equal(image, _grey(500, 700))


@pytest.mark.parametrize(
    "box", [[-50.0, -50, 20, 20], [630, 470, 900, 900], [30, 40, 20, 10], [5, 5, 5, 5]]
)
def test_boxes_beyond_the_edge_or_degenerate_can_be_drawn(box):
    image = _grey(480, 640)
    drawn = _draw(image, box)
    assert drawn.shape == image.shape
    assert not torch.equal(drawn, image)


def test_labels_are_legible_inside_the_image():
    drawn = _draw(_grey(480, 640), [600, 2, 638, 100])  # no room above nor to the right
    colour = torch.tensor(class_colour(0), dtype=torch.uint8)[:, None, None]
    filled = (drawn == colour).all(0)
    assert filled[:30, 560:].float().mean() > 0.3  # background of the text
    assert (drawn[:, :30, 560:].float().mean(0) > 250).any()  # white text on it


@pytest.mark.parametrize("letters", ["жщ", "λω", "łő", "Ññ"])
def test_letters_of_many_languages_differ_and_are_there(letters):
    box, label = torch.tensor([[100.0, 100, 300, 300]]), torch.tensor([0])
    drawn = [draw_boxes(_grey(480, 640), box, label, [text]) for text in (*letters, "\uffff")]
    assert not any(torch.equal(a, b) for a, b in combinations(drawn, 2))


def test_no_boxes_leave_the_image_as_it_is():
    image = _grey(480, 640)
    drawn = draw_boxes(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), NAMES)
    assert torch.equal(drawn, image)


def test_the_best_score_is_drawn_on_top():
    box = torch.tensor([[100.0, 100, 300, 300]] * 2)
    labels = torch.tensor([0, 1])
    for best in (0, 1):
        scores = torch.tensor([0.1, 0.1])
        scores[best] = 0.9
        drawn = draw_boxes(_grey(480, 640), box, labels, NAMES, scores)
        assert tuple(drawn[:, 300, 200].tolist()) == class_colour(best)


def test_class_colours_differ_and_are_stable():
    colours = [class_colour(i) for i in range(80)]
    assert len(set(colours)) == 80
    assert colours[:10] == [class_colour(i) for i in range(10)]


def test_denormalise_inverts_normalisation():
    image = torch.randint(0, 256, (3, 8, 9), dtype=torch.uint8)
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    m, s = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
    assert torch.equal(denormalise((image - m) / s, mean, std), image)


def test_side_by_side_shows_both_below_their_captions():
    left, right = _grey(200, 300), _grey(240, 100)
    left[0], right[1] = 0, 0  # colours that no text has
    panel = side_by_side(left, right, ("predicted", "true"))
    assert panel.shape[1] > 240
    assert panel.shape[2] >= 400
    assert (panel[0] == 0).sum() == left[0].numel()
    assert (panel[1] == 0).sum() == right[0].numel()


def test_grid_holds_images_of_different_sizes():
    images = [_grey(20, 30), _grey(40, 10), _grey(10, 10)]
    panel = grid(images, columns=2, gap=2)
    assert panel.shape == (3, 2 + 2 * 42, 2 + 2 * 32)
    assert (panel == 100).all(0).sum() == 600 + 400 + 100
    with pytest.raises(ValueError, match="no image"):
        grid([], columns=2)


def test_save_png_is_lossless_and_makes_the_folder(tmp_path):
    image = torch.randint(0, 256, (3, 12, 7), dtype=torch.uint8)
    save_png(tmp_path / "new" / "a.png", image)
    with Image.open(tmp_path / "new" / "a.png") as file:
        assert torch.equal(torch.from_numpy(np.array(file)).permute(2, 0, 1), image)


def test_small_boxes_may_have_no_label() -> None:
    image = torch.zeros(3, 480, 480, dtype=torch.uint8)
    small, large = torch.tensor([[200.0, 200, 220, 219]]), torch.tensor([[200.0, 200, 260, 280]])
    label = torch.tensor([0])
    for boxes in (small, large):
        plain, sparse = (
            draw_boxes(image, boxes, label, ["ant"], least_named=least) for least in (0.0, 32.0)
        )
        assert torch.equal(plain, sparse) == (boxes is large)
    assert sparse.any()
    outline = draw_boxes(image, small, label, ["ant"], least_named=32.0).any(dim=0)
    assert outline.sum() == 2 * (21 + 20) - 4, "one pixel wide"
