"""Branches: what the detector finds, and what a head finds on the same encoder."""

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from codetr.data.augment import EvalResize
from codetr.data.collate import Collate
from codetr.data.sample import as_sample
from codetr.errors import UserError
from codetr.evaluation import Postprocess
from codetr.inference.views import Views, mirrored_boxes
from codetr.structures import Batch, Detections, ImageInfo, Images, Memory, Predictions, Pyramid
from codetr.supervision.criteria import QualityClassification, SetCriterion
from codetr.supervision.schemes import Collaborative, CoordinateEmbedding
from codetr.training.branches import (
    AuxiliaryBranch,
    MainBranch,
    ViewedBranch,
    auxiliary_branch,
    in_original,
)
from codetr.training.evaluate import batch_of_one

DIM = 32
BOX = torch.tensor([[4.0, 8.0, 20.0, 16.0]])


class Head(nn.Module):
    """Always finds one box, in pixels of the image that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.seen: Pyramid | None = None

    def predict(self, pyramid: Pyramid, images: Images) -> tuple[Detections, ...]:
        self.seen = pyramid
        one = Detections(boxes_xyxy_px=BOX, scores=torch.tensor([0.5]), labels=torch.tensor([2]))
        return (one,) * len(images)


class Encoder(nn.Module):
    def encode(self, images: Images) -> Memory:
        return Memory(
            tokens=torch.ones(len(images), 16, DIM),
            padding=torch.zeros(len(images), 16, dtype=torch.bool),
            shapes=((4, 4),),
            strides=(8,),
            valid_ratios=torch.ones(len(images), 1, 2),
        )

    def forward(self, images: Images) -> Predictions:
        return Predictions(logits=torch.zeros(2, 1, 1), boxes=torch.full((2, 1, 4), 0.5))


def scheme() -> Collaborative:
    criterion = SetCriterion(QualityClassification())
    return Collaborative({"own": Head()}, partial(CoordinateEmbedding, DIM), criterion, DIM)


def batch() -> Batch:
    sizes = torch.tensor([[32, 32], [32, 32]])
    images = Images(
        pixels=torch.zeros(2, 3, 32, 32),
        padding=torch.zeros(2, 32, 32, dtype=torch.bool),
        sizes=sizes,
        padded_sizes=sizes,
    )
    infos = (
        ImageInfo(image_id=1, original_size=(32, 32), scale=(1.0, 1.0)),
        ImageInfo(image_id=2, original_size=(64, 128), scale=(0.25, 0.5)),
    )
    return Batch(images=images, targets=(), infos=infos)


def test_boxes_of_a_head_come_back_to_the_original_image() -> None:
    part = scheme()
    first, second = AuxiliaryBranch(Encoder(), part, "own")(batch())
    assert_close(first.boxes_xyxy_px, BOX)
    assert_close(second.boxes_xyxy_px, BOX * torch.tensor([4.0, 2.0, 4.0, 2.0]))
    assert (second.scores.tolist(), second.labels.tolist()) == ([0.5], [2])
    assert part.heads["own"].seen.shapes == ((4, 4), (2, 2)), "with the auxiliary level"


def test_main_branch_is_the_detector_and_its_postprocessing() -> None:
    _, second = MainBranch(Encoder(), Postprocess(max_detections=1))(batch())
    assert_close(second.boxes_xyxy_px, torch.tensor([[32.0, 16.0, 96.0, 48.0]]))


def test_no_detection_stays_none() -> None:
    empty = Detections(
        boxes_xyxy_px=torch.zeros(0, 4),
        scores=torch.zeros(0),
        labels=torch.zeros(0, dtype=torch.int64),
    )
    (found,) = in_original([empty], batch().infos[:1])
    assert found.boxes_xyxy_px.shape == (0, 4)


class Brightest(nn.Module):
    """Finds the brightest pixel of the red channel, relative to the valid area, and how bright."""

    def forward(self, images: Images) -> Predictions:
        red, (height, width) = images.pixels[:, 0], images.sizes[0].tolist()
        place = red[0, :height, :width].argmax()
        centre = torch.stack([place % width + 0.5, place // width + 0.5])
        box = torch.cat([centre, torch.ones(2)]) / torch.tensor([width, height] * 2)
        return Predictions(logits=red.max().view(1, 1, 1), boxes=box[None, None])


def viewed(views: Views, sizes: Sequence[int]) -> ViewedBranch:
    """Brightest, on images whose shorter side becomes each of ``sizes``."""
    branch = MainBranch(Brightest(), Postprocess(max_detections=5))
    collate = Collate(mean=(10, 20, 30), std=(40, 50, 60), size_divisor=32)
    prepare = [partial(batch_of_one, EvalResize(short=s, long=999), collate) for s in sizes]
    return ViewedBranch(branch, prepare, partial(views.compose, limit=5))


def raw(*images: torch.Tensor) -> Batch:
    """As the data module gives them where views are chosen."""
    return Collate(mean=(0, 0, 0), std=(1, 1, 1))([as_sample(image) for image in images])


def picture(height: int, width: int, x: int, y: int) -> torch.Tensor:
    image = torch.randint(0, 200, (3, height, width), dtype=torch.uint8)
    image[0, y, x] = 255
    return image


def test_one_view_is_the_branch_on_each_image_alone() -> None:
    images = [picture(20, 30, 4, 7), picture(41, 27, 20, 33)]
    branch = viewed(Views(), [40])
    found = branch(raw(*images))
    for image, one in zip(images, found, strict=True):
        (expected,) = branch.branch(branch.prepare[0](image))
        assert_close(one.boxes_xyxy_px, expected.boxes_xyxy_px)
        assert_close(one.scores, expected.scores)
        assert one.scores.item() > 0.9, "the network got normalised pixels"


@pytest.mark.parametrize("views", [Views(flip=True), Views(flip=True, scales=(1.0, 2.0))])
def test_views_of_a_mirrored_image_are_the_mirrored_ones(views: Views) -> None:
    image = picture(24, 36, 5, 11)
    branch = viewed(views, [24 * round(scale) for scale in views.scales])
    (plain,), (mirrored,) = branch(raw(image)), branch(raw(image.flip(-1)))
    assert_close(plain.boxes_xyxy_px[0], torch.tensor([5.0, 11.0, 6.0, 12.0]), atol=0.6, rtol=0)
    assert_close(mirrored.boxes_xyxy_px, mirrored_boxes(plain.boxes_xyxy_px, 36))
    assert_close(mirrored.scores, plain.scores)


def test_branch_needs_a_head_and_its_weights() -> None:
    part = scheme()
    schemes = {"other": nn.Identity(), "collaborative": part}
    held = [f"collaborative.{name}" for name in part.state_dict()]
    assert isinstance(auxiliary_branch("own", Encoder(), schemes, held), AuxiliaryBranch)
    with pytest.raises(UserError, match="branch=rcnn: the checkpoint's run had only main, own"):
        auxiliary_branch("rcnn", Encoder(), schemes, held)
    with pytest.raises(UserError, match=r"give the run's best\.ckpt"):
        auxiliary_branch("own", Encoder(), schemes, ())
    with pytest.raises(UserError, match=r"had only main$"):
        auxiliary_branch("own", Encoder(), {"one": nn.Identity()}, held)
    with pytest.raises(UserError, match="had only main, own"):
        AuxiliaryBranch(Encoder(), part, "atss")
