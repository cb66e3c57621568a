"""Branches: what the detector finds, and what a head finds on the same encoder."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from codetr.aux_heads.detections import Detections as HeadDetections
from codetr.criteria import QualityClassification, SetCriterion
from codetr.errors import UserError
from codetr.evaluation import Postprocess
from codetr.schemes import Collaborative, CoordinateEmbedding
from codetr.structures import Batch, ImageInfo, Images, Memory, Predictions, Pyramid
from codetr.training.branches import AuxiliaryBranch, MainBranch, auxiliary_branch, in_original

DIM = 32
BOX = torch.tensor([[4.0, 8.0, 20.0, 16.0]])


class Head(nn.Module):
    """Always finds one box, in pixels of the image that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.seen: Pyramid | None = None

    def predict(self, pyramid: Pyramid, images: Images) -> tuple[HeadDetections, ...]:
        self.seen = pyramid
        one = HeadDetections(
            boxes_xyxy_px=BOX, scores=torch.tensor([0.5]), labels=torch.tensor([2])
        )
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
    empty = HeadDetections(
        boxes_xyxy_px=torch.zeros(0, 4),
        scores=torch.zeros(0),
        labels=torch.zeros(0, dtype=torch.int64),
    )
    (found,) = in_original([empty], batch().infos[:1])
    assert found.boxes_xyxy_px.shape == (0, 4)


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
