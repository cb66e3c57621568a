"""Encode, queries, decode; and groups that do not disturb each other."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import codetr.models.layers.attention as attention_module
from codetr.models.backbones import TimmBackbone
from codetr.models.detectors import MAIN, Detr
from codetr.models.heads import DetectionHead, Head, TiedDetectionHead
from codetr.models.necks import ChannelMapper
from codetr.models.transformers import (
    AnchorPosition,
    DeformableDecoder,
    DeformableDecoderLayer,
    DeformableEncoder,
    DeformableEncoderLayer,
    LearnedQueries,
    MixedQueries,
    ProposalStage,
)
from codetr.models.transformers.protocol import DecoderOutput
from codetr.structures import Decoded, Images, Memory, Queries, QueryGroup

DIM, CLASSES, LAYERS, QUERIES = 32, 3, 2, 6
OPTIONS = {"dim": DIM, "heads": 2, "levels": 2, "points": 2, "hidden": DIM}


def detector(head_layers: int = LAYERS) -> Detr:
    backbone = TimmBackbone(
        "resnet10t", out_indices=(3,), model_args={"channels": (16, 16, 16, 16), "stem_width": 8}
    )
    made = Detr(
        backbone,
        partial(ChannelMapper, dim=DIM, extra=1),
        DeformableEncoder(partial(DeformableEncoderLayer, **OPTIONS), 1, DIM, levels=2),
        MixedQueries(ProposalStage(QUERIES, DIM), DIM),
        DeformableDecoder(
            partial(DeformableDecoderLayer, **OPTIONS), LAYERS, anchor_position=AnchorPosition(DIM)
        ),
        DetectionHead(CLASSES, DIM, head_layers),
    )
    with torch.no_grad():
        for parameter in made.head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def images(dtype: torch.dtype = torch.float64) -> Images:
    sizes = torch.tensor([[64, 96], [64, 64]])
    padding = torch.zeros(2, 64, 96, dtype=torch.bool)
    padding[1, :, 64:] = True
    pixels = torch.randn(2, 3, 64, 96, dtype=dtype)
    return Images(pixels=pixels, padding=padding, sizes=sizes, padded_sizes=sizes)


def extra_groups() -> list[QueryGroup]:
    """One that sees the main group and has blocks, one with padding, one plain."""

    def queries(count: int, padding: Tensor | None = None) -> Queries:
        return Queries(
            content=torch.randn(2, count, DIM, dtype=torch.float64),
            anchors=torch.rand(2, count, 4, dtype=torch.float64) * 0.6 + 0.2,
            padding=padding,
        )

    void = torch.tensor([[False] * 3, [False, False, True]])
    index = torch.arange(4) // 2
    return [
        QueryGroup(name="noisy", queries=queries(4), blocked=index[:, None] != index, sees=(MAIN,)),
        QueryGroup(name="padded", queries=queries(3, void)),
        QueryGroup(name="plain", queries=queries(5)),
    ]


def prepared() -> tuple[Detr, Memory, QueryGroup]:
    made = detector().double().eval()
    memory = made.encode(images())
    return made, memory, QueryGroup(name=MAIN, queries=made.queries(memory)[0])


def assert_equal(one: Decoded, other: Decoded) -> None:
    for a, b in zip(one.layers, other.layers, strict=True):
        assert_close(a.logits, b.logits, rtol=0, atol=1e-10)
        assert_close(a.boxes, b.boxes, rtol=0, atol=1e-10)


def test_forward_is_encode_queries_and_decode_of_the_main_group() -> None:
    made = detector().double().eval()
    inputs = images()
    memory = made.encode(inputs)
    main = QueryGroup(name=MAIN, queries=made.queries(memory)[0])
    last = made.decode(memory, [main])[MAIN].layers[-1]
    found = made(inputs)
    assert_close(found.logits, last.logits)
    assert_close(found.boxes, last.boxes)
    assert found.logits.shape == (2, QUERIES, CLASSES)
    assert (made.num_classes, made.num_layers) == (CLASSES, LAYERS)


@torch.no_grad()
@pytest.mark.parametrize("one_pass", [True, False])
def test_extra_groups_do_not_touch_the_main_group(one_pass: bool) -> None:
    made, memory, main = prepared()
    made.one_pass = one_pass
    alone = made.decode(memory, [main])[MAIN]
    together = made.decode(memory, [main, *extra_groups()])
    assert_equal(together[MAIN], alone)


@torch.no_grad()
def test_one_pass_and_several_give_the_same_numbers() -> None:
    made, memory, main = prepared()
    groups = [main, *extra_groups()]
    together = made.decode(memory, groups)
    made.one_pass = False
    apart = made.decode(memory, groups)
    assert together.keys() == apart.keys() == {g.name for g in groups}
    for name, decoded in together.items():
        assert_equal(apart[name], decoded)


@torch.no_grad()
def test_several_passes_hold_fewer_queries_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, memory, main = prepared()
    sizes: list[int] = []
    forward = DeformableDecoder.forward

    def spy(self: DeformableDecoder, queries: Queries, *rest: object) -> object:
        sizes.append(queries.content.shape[1])
        return forward(self, queries, *rest)

    monkeypatch.setattr(DeformableDecoder, "forward", spy)
    made.decode(memory, [main, *extra_groups()])
    made.one_pass = False
    made.decode(memory, [main, *extra_groups()])
    assert sizes[0] == QUERIES + 4 + 3 + 5
    assert sorted(sizes[1:]) == [3, 5, QUERIES + 4], "noisy goes with main, which it sees"


@torch.no_grad()
def test_what_a_group_sees_matters() -> None:
    made, memory, main = prepared()
    noisy = extra_groups()[0]
    blind = made.decode(memory, [main, replace(noisy, sees=())])["noisy"]
    seeing = made.decode(memory, [main, noisy])["noisy"]
    open_ = made.decode(memory, [main, replace(noisy, blocked=None)])["noisy"]
    assert not torch.allclose(blind.layers[0].logits, seeing.layers[0].logits)
    assert not torch.allclose(open_.layers[0].logits, seeing.layers[0].logits)


@torch.no_grad()
def test_padded_queries_change_nothing() -> None:
    made, memory, _ = prepared()
    padded = extra_groups()[1]
    content = padded.queries.content.clone()
    content[1, 2] += 5
    other = replace(padded, queries=replace(padded.queries, content=content))
    one = made.decode(memory, [padded])["padded"].layers[-1].logits
    two = made.decode(memory, [other])["padded"].layers[-1].logits
    assert_close(one[0], two[0])
    assert_close(one[1, :2], two[1, :2])
    assert one.isfinite().all()


@torch.no_grad()
def test_batch_padding_reaches_no_prediction_through_the_transformer() -> None:
    """What the maps hold beyond an image is masked in every attention."""
    made, memory, main = prepared()
    noise = torch.randn_like(memory.tokens) * memory.padding[..., None]
    noisy = replace(memory, tokens=memory.tokens + noise)
    assert_equal(made.decode(noisy, [main])[MAIN], made.decode(memory, [main])[MAIN])


def test_head_and_decoder_must_have_the_same_number_of_layers() -> None:
    with pytest.raises(ValueError, match="made for 3 decoder layers but there are 2"):
        detector(head_layers=3)


@torch.no_grad()
def test_every_sampling_location_is_float32_under_autocast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, seen = attention_module.multi_scale_deformable_attention, []

    def spy(value: Tensor, shapes: object, locations: Tensor, weights: Tensor) -> Tensor:
        seen.append((value.dtype, locations.dtype))
        return real(value, shapes, locations, weights)

    monkeypatch.setattr(attention_module, "multi_scale_deformable_attention", spy)
    made = detector().eval()
    inputs = images(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = made(inputs)
    assert seen == [(torch.bfloat16, torch.float32)] * (1 + LAYERS)
    assert found.boxes.dtype == torch.float32


class OneLook(nn.Module):
    """A decoder of one layer that attends to all tokens and decodes the main queries alone."""

    num_layers, groups = 1, False

    def forward(
        self, queries: Queries, memory: Memory, head: Head, mask: Tensor | None
    ) -> DecoderOutput:
        assert mask is None
        scores = queries.content @ memory.tokens.mT
        weights = scores.masked_fill(memory.padding[:, None], -torch.inf).softmax(-1)
        hidden = queries.content + weights @ memory.tokens
        return DecoderOutput(layers=(head.layer(0)(hidden, queries.anchors),))


@torch.no_grad()
def test_parts_are_known_by_their_protocols_alone() -> None:
    made = detector()
    other = Detr(
        made.backbone,
        lambda channels, strides: made.neck,
        made.encoder,
        LearnedQueries(QUERIES, DIM),
        OneLook(),
        TiedDetectionHead(CLASSES, DIM, num_layers=1, two_stage=False),
    )
    other.double().eval()
    assert made.groups
    assert not other.groups
    memory = other.encode(images())
    (main,) = other.queries(memory)
    answer = other.decode(memory, [QueryGroup(name=MAIN, queries=main)])[MAIN]
    assert answer.taps == {}
    assert answer.layers[0].boxes.shape == (2, QUERIES, 4)
    noise = torch.randn_like(memory.tokens) * memory.padding[..., None]
    noisy = replace(memory, tokens=memory.tokens + noise)
    assert_equal(other.decode(noisy, [answer.group])[MAIN], answer)
