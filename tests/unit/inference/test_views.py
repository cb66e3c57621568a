"""Laws of test-time augmentation, with a finder that sees bright rectangles."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiff_files import Layout, write_image
from torch import Tensor

from codetr.data import regions
from codetr.data.images import PixelRules
from codetr.data.regions import Regions, open_image
from codetr.errors import UserError
from codetr.inference.views import Mirrored, Several, Tiled, Views, merged, tile_starts
from codetr.nms import Nms, SoftNms
from codetr.structures import Detections


class Exact:
    """Finds the smallest box around all pixels of each grey level (label: level - 1)."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, ...]] = []

    def __call__(self, images: Sequence[Regions]) -> tuple[Detections, ...]:
        self.sizes += [tuple(image.shape[-2:]) for image in images]
        return tuple(self._one(image[:, :, :][0]) for image in images)

    def _one(self, image: Tensor) -> Detections:
        boxes, labels = [], []
        for level in image.unique().tolist():
            if level:
                y, x = (image == level).nonzero(as_tuple=True)
                boxes.append([int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1])
                labels.append(level - 1)
        return detections(boxes, labels)


def detections(boxes: list, labels: list[int], scores: list[float] | None = None) -> Detections:
    return Detections(
        boxes_xyxy_px=torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        scores=torch.tensor(scores if scores is not None else [0.9] * len(labels)),
        labels=torch.tensor(labels, dtype=torch.int64),
    )


def scene(height: int, width: int, boxes: list[tuple[int, int, int, int]]) -> Tensor:
    """Rectangle i has the grey level i + 1."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        image[:, y0:y1, x0:x1] = i + 1
    return image


def by_label(found: Detections) -> list[list[float]]:
    return found.boxes_xyxy_px[found.labels.argsort()].tolist()


def test_mirror_image_gives_the_same_boxes() -> None:
    image = scene(40, 70, [(3, 5, 20, 30), (50, 8, 69, 9)])
    assert by_label(Mirrored(Exact())([image])[0]) == by_label(Exact()([image])[0])


@pytest.mark.parametrize("suppress", [Nms(0.5), SoftNms(iou_threshold=0.5, min_score=0.1)])
def test_each_object_once_from_several_views(suppress: object) -> None:
    image = scene(40, 70, [(3, 5, 20, 30), (50, 8, 69, 30)])
    found = Several([Exact(), Mirrored(Exact()), Exact()], suppress, 100)([image])[0]  # type: ignore[arg-type]
    assert by_label(found) == [[3, 5, 20, 30], [50, 8, 69, 30]]


def test_nms_is_class_wise_and_keeps_the_better() -> None:
    box = [0, 0, 10, 10]
    near = [1, 0, 11, 10]
    views = [detections([box, box], [0, 1], [0.5, 0.6]), detections([near], [0], [0.7])]
    found = merged(views, Nms(0.5), 10)
    assert found.boxes_xyxy_px.tolist() == [near, box]
    assert found.labels.tolist() == [0, 1]
    assert len(merged(views, Nms(0.95), 10)) == 3
    assert len(merged(views, Nms(0.95), 2)) == 2
    assert len(merged([detections([], [])], Nms(), 5)) == 0


@pytest.mark.parametrize(
    ("size", "tile", "overlap"), [(100, 40, 0.25), (41, 40, 0.0), (1000, 64, 0.5), (40, 40, 0.2)]
)
def test_tiles_cover_the_side_and_overlap(size: int, tile: int, overlap: float) -> None:
    starts = tile_starts(size, tile, overlap)
    assert starts[0] == 0
    assert starts[-1] + tile == max(size, tile)
    steps = [b - a for a, b in pairwise(starts)]
    assert all(0 < step <= round(tile * (1 - overlap)) for step in steps)


def test_tiles_find_all_objects_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = []
    for row in range(4):
        for column in range(5):
            x, y = (torch.randint(0, 40, (2,), generator=generator)).tolist()
            boxes.append((column * 60 + x, row * 60 + y, column * 60 + x + 16, row * 60 + y + 18))
    boxes.append((20, 250, 290, 270))  # larger than any tile
    finder = Exact()
    tiled = Tiled(finder, Nms(), 100, tile=96, overlap=0.4)
    image = scene(280, 300, boxes)
    found = tiled([image])[0]
    assert by_label(found) == [list(map(float, box)) for box in boxes]
    assert set(finder.sizes) == {(96, 96), (280, 300)}


def test_cut_objects_are_dropped() -> None:
    """A finder that sees nothing in the whole image: what is left is what tiles have whole."""

    class TilesOnly(Exact):
        def __call__(self, images: Sequence[Regions]) -> tuple[Detections, ...]:
            found = super().__call__(images)
            return tuple(
                one if image.shape[-1] == 64 else detections([], [])
                for one, image in zip(found, images, strict=True)
            )

    whole, cut, at_edge = (10, 10, 30, 30), (40, 5, 110, 20), (0, 40, 20, 64)
    found = Tiled(TilesOnly(), Nms(), 100, tile=64, overlap=0.25)(
        [scene(64, 112, [whole, cut, at_edge])]
    )[0]
    assert by_label(found) == [list(map(float, whole)), list(map(float, at_edge))]


def test_small_images_are_looked_at_once() -> None:
    finder = Exact()
    Tiled(finder, Nms(), 10, tile=64)([scene(64, 50, [(1, 1, 9, 9)])])
    assert finder.sizes == [(64, 50)]


def test_composition() -> None:
    finder = Exact()
    assert Views().compose([finder], 10) is finder
    flipped = Views(flip=True, scales=(1.0, 2.0)).compose([finder, finder], 10)
    assert isinstance(flipped, Several)
    assert len(flipped.finders) == 4
    tiled = Views(flip=True, tile=64).compose([finder], 10)
    assert isinstance(tiled, Tiled)
    assert isinstance(tiled.finder, Several)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Nms(0.0),
        lambda: Views(scales=()),
        lambda: Views(scales=(0.0,)),
        lambda: Tiled(Exact(), Nms(), 10, tile=8),
        lambda: Tiled(Exact(), Nms(), 10, tile=64, overlap=1.0),
    ],
)
def test_numbers_out_of_range_are_refused(make: object) -> None:
    with pytest.raises(UserError, match=r"give|choose"):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("batch", [1, 3, 4, 100])
def test_tiles_are_made_a_batch_at_a_time(batch: int) -> None:
    groups: list[int] = []
    finder = Exact()

    def noting(images: Sequence[Regions]) -> tuple[Detections, ...]:
        groups.append(len(images))
        return finder(images)

    image = scene(64, 160, [(10, 10, 30, 30), (100, 5, 120, 20)])
    found = Tiled(noting, Nms(), 10, tile=64, batch=batch)([image])[0]
    assert by_label(found) == [[10, 10, 30, 30], [100, 5, 120, 20]]
    assert sum(groups) == 4
    assert max(groups) == min(batch, 4)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_file_read_in_regions_is_seen_as_its_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orientation: int
) -> None:
    monkeypatch.setattr(regions, "LARGE", 0)
    seen = scene(120, 200, [(10, 10, 30, 30), (100, 50, 140, 90), (2, 95, 190, 119)])
    picture = Image.fromarray(seen.permute(1, 2, 0).numpy())
    if orientation == 6:  # turned by 90 degrees clockwise where it is shown
        picture = picture.transpose(Image.Transpose.ROTATE_90)
    layout = Layout(chunk=(32, 48), orientation=orientation)
    path = write_image(tmp_path / "a.tif", picture, layout, "tiff_lzw")
    file = open_image(path, PixelRules(in_regions=True))
    assert not isinstance(file, Tensor)
    finder = Views(flip=True, tile=64).compose([Exact()], 10)
    assert by_label(finder([file])[0]) == by_label(finder([seen])[0])
