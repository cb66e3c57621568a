"""Queries that come from the backbone, and decoders that read them before any layer."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from codetr.classification import Softmax
from codetr.errors import UserError
from codetr.models.heads import DetectionHead, PerceptronHead
from codetr.models.necks import ChannelMapper, IdentityNeck
from codetr.models.transformers import (
    DeformableDecoder,
    DeformableDecoderLayer,
    IdentityDecoder,
    IdentityEncoder,
    ProjectedTokenQueries,
    QueryTable,
    ReadFirstDecoder,
    TokenQueries,
)
from codetr.models.transformers.encoder import DeformableEncoder, DeformableEncoderLayer
from codetr.structures import CROSS_ATTENTION, DetectionTokens, Memory, Pyramid

DIM, QUERIES, CLASSES = 32, 4, 3
OPTIONS = {"dim": DIM, "heads": 2, "levels": 2, "points": 2, "hidden": DIM}


def pyramid(width: int = DIM, detection: bool = True) -> Pyramid:
    content = torch.randn(2, QUERIES, 24, dtype=torch.float64)
    position = torch.randn(QUERIES, 12, dtype=torch.float64)
    return Pyramid(
        maps=tuple(torch.randn(2, width, n, n + 1, dtype=torch.float64) for n in (4, 2)),
        strides=(8, 16),
        detection=DetectionTokens(content=content, position=position) if detection else None,
    )


def padding() -> torch.Tensor:
    void = torch.zeros(2, 32, 40, dtype=torch.bool)
    void[1, :, 20:] = True
    return void


def memory(detection: bool = True) -> Memory:
    return IdentityEncoder()(pyramid(detection=detection), padding())


def test_tokens_travel_through_necks_and_encoders() -> None:
    given = pyramid(16)
    neck = ChannelMapper((16, 16), (8, 16), DIM, extra=0).double()
    assert neck(given).detection is given.detection
    layer = partial(DeformableEncoderLayer, **OPTIONS)
    encoder = DeformableEncoder(layer, 1, DIM, levels=2).double()
    assert encoder(neck(given), padding()).detection is given.detection
    assert IdentityEncoder()(given, padding()).detection is given.detection


def test_no_encoder_leaves_maps_and_says_what_is_image() -> None:
    given = pyramid()
    found = IdentityEncoder()(given, padding())
    for ours, theirs in zip(found.pyramid().maps, given.maps, strict=True):
        assert torch.equal(ours, theirs)
    layer = partial(DeformableEncoderLayer, **OPTIONS)
    other = DeformableEncoder(layer, 1, DIM, levels=2).double()(given, padding())
    assert torch.equal(found.padding, other.padding)
    assert_close(found.valid_ratios, other.valid_ratios)
    assert found.valid_ratios[1, :, 0].max() < 0.7


def test_no_neck_wants_maps_of_the_models_width() -> None:
    given = pyramid()
    assert IdentityNeck((DIM, DIM), (8, 16), DIM)(given) is given
    with pytest.raises(UserError, match=r"maps of \[8, 16\] channels.*model\.dim=32"):
        IdentityNeck((8, 16), (8, 16), DIM)


def test_boxes_of_plain_tokens_are_relative_to_nothing() -> None:
    given, head = memory(), PerceptronHead(CLASSES, 24).double()
    (queries,) = TokenQueries()(given, head)
    assert given.detection is not None
    assert queries.content is given.detection.content
    found = head.layer(0)(queries.content, queries.anchors)
    assert torch.equal(found.boxes, head.regress(queries.content).sigmoid())


def test_plain_tokens_have_no_company() -> None:
    head = PerceptronHead(CLASSES, 24)
    with pytest.raises(UserError, match="there can be no further ones"):
        TokenQueries()(memory(), head, [QueryTable(3, 24)])
    for init in (TokenQueries(), ProjectedTokenQueries(24, 12, DIM)):
        with pytest.raises(UserError, match="detection tokens, but it has none"):
            init(memory(detection=False), head)


def test_projected_tokens_and_tables() -> None:
    init = ProjectedTokenQueries(24, 12, DIM).double()
    table, given = QueryTable(3, DIM, position=True).double(), memory()
    main, other = init(given, DetectionHead(CLASSES, DIM), [table])
    linear, norm = init.content
    assert given.detection is not None
    projected = linear(given.detection.content)
    for b in range(2):  # one mean and one variance for a group's channels of all tokens
        groups = projected[b].T.reshape(32, -1)
        scaled = (groups - groups.mean(1, keepdim=True)) / (
            groups.var(1, keepdim=True, correction=0) + norm.eps
        ).sqrt()
        assert_close(main.content[b], scaled.reshape(DIM, QUERIES).T)
    assert main.position is not None
    assert_close(main.anchors, init.reference_points(main.position).sigmoid())
    assert torch.equal(other.content[1], table.content)
    assert torch.equal(other.position[0], table.position)
    assert_close(other.anchors[0], init.reference_points(table.position).sigmoid())
    assert init.form.rows == ("content", "position")
    with pytest.raises(AssertionError):
        init(given, DetectionHead(CLASSES, DIM), [QueryTable(3, DIM)])


def decoder() -> ReadFirstDecoder:
    layer = partial(DeformableDecoderLayer, **OPTIONS)
    return ReadFirstDecoder(DeformableDecoder(layer, 2, look_forward_twice=False))


def test_reading_first_is_one_answer_more_and_the_layers_go_on_from_it() -> None:
    init, made = ProjectedTokenQueries(24, 12, DIM).double(), decoder().double()
    head = DetectionHead(CLASSES, DIM, 3, two_stage=False, size_logit=-2.0).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    given = memory()
    (queries,) = init(given, head)
    found = made(queries, given, head, None)
    assert len(found.layers) == made.num_layers == 3
    assert len(found.taps[CROSS_ATTENTION]) == 2
    first = head.layer(0)(queries.content, queries.anchors)
    assert torch.equal(found.layers[0].boxes, first.boxes)
    later = DetectionHead(CLASSES, DIM, 2, two_stage=False).double()
    later.classify.load_state_dict(head.classify[1:].state_dict())
    later.regress.load_state_dict(head.regress[1:].state_dict())
    begun = type(queries)(
        content=queries.content, anchors=first.boxes.detach(), position=queries.position
    )
    rest = made.decoder(begun, given, later, None)
    for ours, theirs in zip(found.layers[1:], rest.layers, strict=True):
        assert torch.equal(ours.boxes, theirs.boxes)
        assert torch.equal(ours.logits, theirs.logits)


def test_boxes_of_points_start_small() -> None:
    head = DetectionHead(CLASSES, DIM, 3, two_stage=False, size_logit=-2.0)
    hidden, points = torch.randn(1, 2, DIM), torch.rand(1, 2, 2)
    assert_close(
        head.layer(0)(hidden, points).boxes[..., 2:], torch.full((1, 2, 2), -2.0).sigmoid()
    )
    boxes = torch.rand(1, 2, 4) * 0.4 + 0.2
    assert_close(head.layer(1)(hidden, boxes).boxes, boxes)


def test_no_layers_is_one_answer() -> None:
    head = PerceptronHead(CLASSES, 24, classification=Softmax(CLASSES)).double()
    given = memory()
    (queries,) = TokenQueries()(given, head)
    (only,) = IdentityDecoder()(queries, given, head, None).layers
    assert only.logits.shape == (2, QUERIES, CLASSES + 1)
    assert only.classification == Softmax(CLASSES)
    with pytest.raises(UserError, match="nothing for them"):
        _ = head.proposals
