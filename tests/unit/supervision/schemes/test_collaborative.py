"""Auxiliary heads under the collaborative scheme, with a head that records what it is given."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from scoring import score
from torch import Tensor, nn
from torch.testing import assert_close

from codetr.loss_terms import LossTerm
from codetr.models.layers import sine_coordinates
from codetr.structures import (
    Batch,
    Candidates,
    Decoded,
    Images,
    Memory,
    Predictions,
    Pyramid,
    Queries,
    Targets,
)
from codetr.supervision.aux_heads import AuxOutput
from codetr.supervision.criteria import QualityClassification, SetCriterion
from codetr.supervision.schemes import (
    Collaborative,
    CoordinateEmbedding,
    CoordinateFeatureEmbedding,
    Start,
)

DIM, CLASSES = 32, 3
DETECTOR = SimpleNamespace(num_classes=CLASSES, num_layers=6)


class RecordingHead(nn.Module):
    """Says that its first two candidates are positive."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seen: Pyramid | None = None

    def forward(self, pyramid: Pyramid, batch: Batch) -> AuxOutput:
        self.seen = pyramid
        boxes = torch.rand(12, 4) * 0.4 + 0.3
        one = Candidates(
            boxes=boxes,
            labels=torch.tensor([1, 2] + [CLASSES] * 10),
            targets=boxes * 0.9,
            features=torch.randn(12, DIM) * self.scale,
        )
        losses = {"cls": LossTerm(self.scale * 3, 1.0), "bbox": LossTerm(self.scale * 4, 2.0)}
        return AuxOutput(losses=losses, candidates=(one,) * len(batch))


def start(source: Memory, data: Batch) -> Start:
    main = Queries(content=torch.zeros(2, 3, DIM), anchors=torch.full((2, 3, 4), 0.5))
    return Start(detector=DETECTOR, memory=source, main=main, own=(), batch=data)


def memory() -> Memory:
    return Memory(
        tokens=torch.randn(2, 30, DIM),
        padding=torch.zeros(2, 30, dtype=torch.bool),
        shapes=((4, 6), (2, 3)),
        strides=(8, 16),
        valid_ratios=torch.ones(2, 2, 2),
    )


def batch() -> Batch:
    sizes = torch.tensor([[32, 48]] * 2)
    images = Images(
        pixels=torch.zeros(2, 3, 32, 48),
        padding=torch.zeros(2, 32, 48, dtype=torch.bool),
        sizes=sizes,
        padded_sizes=sizes,
    )
    target = Targets(
        boxes=torch.rand(1, 4),
        labels=torch.zeros(1, dtype=torch.int64),
        weights=torch.ones(1),
        size=torch.tensor([48.0, 32.0]),
    )
    return Batch(images=images, targets=(target,) * 2)


def scheme(*names: str, **options: float) -> Collaborative:
    heads = {name: RecordingHead() for name in names}
    criterion = SetCriterion(QualityClassification())
    return Collaborative(heads, partial(CoordinateEmbedding, DIM), criterion, DIM, **options)


def test_without_heads_it_has_no_parameters_and_does_nothing() -> None:
    part = scheme()
    proposal = part.propose(start(memory(), batch()))
    assert (proposal.groups, proposal.losses) == ((), {})
    assert score(part, {}, batch()) == {}
    assert list(part.parameters()) == []


def test_heads_see_the_encoders_maps_and_one_more_level() -> None:
    part, inputs = scheme("a"), memory()
    part.propose(start(inputs, batch()))
    seen = part.heads["a"].seen
    assert seen.shapes == ((4, 6), (2, 3), (1, 2))
    assert seen.strides == (8, 16, 32)
    for found, own in zip(seen.maps, inputs.pyramid().maps, strict=False):
        assert torch.equal(found, own)
    assert_close(seen.maps[2], part.extra_level(inputs.pyramid()).maps[2])
    convolution, norm = part.extra_level
    assert_close(seen.maps[2], norm(convolution(seen.maps[1])))


def test_each_heads_losses_weigh_lambda_2_times_the_decoder_layers() -> None:
    losses = scheme("a", "b", lambda_2=2.0).propose(start(memory(), batch())).losses
    weights = {name: (term.value.item(), term.weight) for name, term in losses.items()}
    assert weights == {
        "a/cls": (3.0, 12.0),
        "a/bbox": (4.0, 24.0),
        "b/cls": (3.0, 12.0),
        "b/bbox": (4.0, 24.0),
    }


def test_each_head_gives_a_group_of_queries_in_order() -> None:
    part = scheme("b", "a", min_queries=5, max_queries=7)
    groups = part.propose(start(memory(), batch())).groups
    assert [group.name for group in groups] == ["positive_b", "positive_a"]
    assert [len(group) for group in groups] == [5, 5]
    assert [len(group.assignment) for group in groups] == [4, 4]
    assert all(group.sees == () for group in groups)
    for name, group in zip("ba", groups, strict=True):
        expected, _ = part.embeddings[name](group.queries.anchors, None)
        assert_close(group.queries.content, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("lambda_1", [1.0, 0.5])
def test_positive_queries_are_measured_against_their_own_targets(lambda_1: float) -> None:
    part, data = scheme("a", lambda_1=lambda_1), batch()
    (group,) = part.propose(start(memory(), data)).groups
    layer = Predictions(
        logits=torch.zeros(2, len(group), CLASSES), boxes=group.queries.anchors * 0.9
    )
    losses = score(part, {group.name: Decoded(layers=(layer,) * 2, group=group)}, data)
    assert set(losses) == {
        f"positive_a/layer{i}/{term}" for i in (0, 1) for term in ("cls", "bbox", "giou")
    }
    bbox = losses["positive_a/layer1/bbox"]
    assert bbox.value.item() == pytest.approx(0, abs=1e-6), "the head's targets, not the batch's"
    assert bbox.weight == 5.0 * lambda_1
    # all negatives and both positives count as queries: 9 x 3 logits of zero per image
    positive, background = losses["positive_a/layer0/cls"], 0.25 * torch.log(torch.tensor(2.0))
    assert positive.value > 2 * 25 * background / 4


def embedded(module: nn.Module) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    anchors, features = torch.rand(2, 5, 4), torch.randn(2, 5, DIM)
    return anchors, features, *module(anchors, features)


def test_coordinate_embedding_is_a_normed_projection_of_the_sines() -> None:
    module = CoordinateEmbedding(DIM)
    anchors, _, content, position = embedded(module)
    expected = module.norm(module.project(sine_coordinates(anchors, DIM // 2)))
    assert_close(content, expected)
    assert position is None


def test_feature_embedding_adds_features_to_content_and_a_scalar_to_position() -> None:
    module = CoordinateFeatureEmbedding(DIM)
    anchors, features, content, position = embedded(module)
    both = module.norm(module.project(sine_coordinates(anchors, DIM // 2)))
    assert_close(position, both[..., :DIM] + module.head_position)
    assert_close(content, both[..., DIM:] + module.feature_norm(module.project_feature(features)))
    assert module.head_position.shape == (1,), "mirrors the official weights"
