"""Boxes of another convention are told from careless ones of COCO's."""

import numpy as np
import pytest

from codetr.data.box_formats import convention_error

SIZE = np.array([640, 480])


def _told(xywh: np.ndarray, size: np.ndarray = SIZE) -> str | None:
    return convention_error(xywh.astype(float), np.broadcast_to(size, (len(xywh), 2)))


def _random_boxes(count: int, seed: int) -> np.ndarray:
    """Objects of 5 to 60 percent of the sides, anywhere in the image."""
    random = np.random.default_rng(seed)
    sides = random.uniform(0.05, 0.6, (count, 2)) * SIZE
    return np.concatenate([random.uniform(0, 1, (count, 2)) * (SIZE - sides), sides], axis=1)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("count", [5, 30, 1000])
def test_corners_and_shares_are_told_and_pixels_are_not(count: int, seed: int) -> None:
    xywh = _random_boxes(count, seed)
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    assert _told(xywh) is None
    assert "two corners" in str(_told(corners))
    assert convention_error(corners, np.broadcast_to(SIZE, (count, 2)), "xyxy") is None
    centres = np.concatenate([xywh[:, :2] + xywh[:, 2:] / 2, xywh[:, 2:]], axis=1)
    assert convention_error(centres, np.broadcast_to(SIZE, (count, 2)), "cxcywh") is None
    if count > 5:  # few may lie in their image as corner and size, too
        assert "centre and size" in str(_told(centres))
    assert "relative" in str(_told(xywh / np.tile(SIZE, 2)))


LARGE = np.array([[4.0, 3.0, 630.0, 470.0]])


@pytest.mark.parametrize(
    "xywh",
    [
        LARGE,
        LARGE.repeat(200, axis=0),
        np.concatenate([LARGE.repeat(3, axis=0), [[10, 8, 640, 480]]]),  # reaches out a little
        np.concatenate([LARGE.repeat(30, axis=0), [[90, 80, 640, 480]]]),  # one far, by mistake
        np.array([[0.0, 0.0, 640.0, 480.0]] * 5),  # all of the image
        np.array([[0.0, 0.0, 0.0, 0.0]] * 5),  # nothing: masks alone are annotated
        np.array([[0.2, 0.3, 0.5, 0.6], [400.0, 300.0, 0.5, 0.5]]),  # below a pixel
        np.zeros((0, 4)),
    ],
)
def test_honest_boxes_are_left_alone(xywh: np.ndarray) -> None:
    assert _told(xywh) is None


def test_images_of_unknown_size_say_nothing() -> None:
    assert _told(np.array([[0.1, 0.1, 0.5, 0.5]]), np.array([0, 0])) is None
