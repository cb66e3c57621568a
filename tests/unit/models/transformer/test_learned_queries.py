"""Learned queries, and a decoder that does not refine the points that they look at."""

from functools import partial

import torch
from torch import Tensor
from torch.testing import assert_close

from codetr.boxes import logit
from codetr.models.heads import TiedDetectionHead
from codetr.models.transformers import DeformableDecoder, DeformableDecoderLayer, LearnedQueries
from codetr.structures import Memory, Queries

DIM, CLASSES, LAYERS, QUERIES = 16, 3, 3, 5
SHAPES = ((3, 4), (2, 2))


def memory(tokens: Tensor | None = None) -> Memory:
    count = sum(h * w for h, w in SHAPES)
    random = torch.randn(2, count, DIM, dtype=torch.float64)
    return Memory(
        tokens=random if tokens is None else tokens,
        padding=torch.zeros(2, count, dtype=torch.bool),
        shapes=SHAPES,
        strides=(8, 16),
        valid_ratios=torch.rand(2, 2, 2, dtype=torch.float64) * 0.3 + 0.7,
    )


def parts(refine: bool) -> tuple[LearnedQueries, DeformableDecoder, TiedDetectionHead]:
    layer = partial(DeformableDecoderLayer, dim=DIM, heads=2, levels=2, points=2, hidden=DIM)
    decoder = DeformableDecoder(layer, num_layers=LAYERS, eps=1e-5, refine=refine).double()
    head = TiedDetectionHead(CLASSES, DIM, LAYERS, two_stage=False).double()
    with torch.no_grad():
        for parameter in (*decoder.parameters(), *head.parameters()):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return LearnedQueries(QUERIES, DIM).double(), decoder, head


def test_queries_do_not_depend_on_the_memory() -> None:
    init, _, head = parts(refine=False)
    (one,), (other,) = init(memory(), head), init(memory(), head)
    for name in ("content", "position", "anchors"):
        assert_close(getattr(one, name), getattr(other, name))
        assert len(getattr(one, name)) == 2
    assert_close(one.content[1], init.content)
    assert_close(one.anchors[0], init.reference_points(init.position).sigmoid())
    assert one.anchors.shape == (2, QUERIES, 2)
    assert one.proposals is None


def by_hand(
    decoder: DeformableDecoder, head: TiedDetectionHead, queries: Queries, inputs: Memory
) -> tuple[list[Tensor], Tensor]:
    """Boxes of every layer without refinement, and the last hidden state."""
    content, boxes = queries.content, []
    references = torch.stack(
        [queries.anchors * inputs.valid_ratios[:, None, level] for level in (0, 1)], dim=2
    )
    for layer in decoder.layers:
        content = layer(content, queries.position, references, inputs, None).content
        offsets = head.regress[0](content)
        centres = offsets[..., :2] + logit(queries.anchors, 1e-5)
        boxes.append(torch.cat([centres, offsets[..., 2:]], dim=-1).sigmoid())
    return boxes, content


def test_without_refinement_every_layer_starts_from_the_points() -> None:
    init, decoder, head = parts(refine=False)
    inputs = memory()
    (queries,) = init(inputs, head)
    found = decoder(queries, inputs, head, None).layers
    boxes, hidden = by_hand(decoder, head, queries, inputs)
    assert len(found) == LAYERS
    for layer, expected in zip(found, boxes, strict=True):
        assert_close(layer.boxes, expected)
    assert_close(found[-1].logits, head.classify[0](hidden))


def test_with_refinement_points_become_boxes() -> None:
    init, decoder, head = parts(refine=True)
    inputs = memory()
    (queries,) = init(inputs, head)
    found = decoder(queries, inputs, head, None).layers
    single, _ = by_hand(decoder, head, queries, inputs)
    assert_close(found[0].boxes, single[0])
    assert not torch.allclose(found[1].boxes, single[1])
    assert all(layer.boxes.shape == (2, QUERIES, 4) for layer in found)


def test_points_are_learned_from_every_layer() -> None:
    init, decoder, head = parts(refine=False)
    inputs = memory()
    found = decoder(init(inputs, head)[0], inputs, head, None).layers
    for layer in found:
        weight = init.reference_points.weight
        (gradient,) = torch.autograd.grad(layer.boxes.sum(), weight, retain_graph=True)
        assert gradient.any()
