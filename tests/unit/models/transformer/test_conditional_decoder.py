"""The decoder of Conditional DETR and DAB-DETR: where queries look, and what they refine."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from codetr.boxes import logit
from codetr.models.heads import TiedDetectionHead
from codetr.models.layers import sine_coordinates
from codetr.models.transformers import (
    AnchorQueries,
    AnchorSpatial,
    ConditionalDecoder,
    ConditionalDecoderLayer,
    Patterns,
    PointQueries,
    PointSpatial,
    QueryTable,
    UnknownLabel,
)
from codetr.structures import CROSS_ATTENTION, Memory, Queries

DIM, LAYERS, QUERIES, TOKENS = 16, 3, 5, 12


def memory() -> Memory:
    padding = torch.zeros(2, TOKENS, dtype=torch.bool)
    padding[1, 9:] = True
    return Memory(
        tokens=torch.randn(2, TOKENS, DIM, dtype=torch.float64),
        padding=padding,
        shapes=((3, 4),),
        strides=(16,),
        valid_ratios=torch.ones(2, 1, 2, dtype=torch.float64),
        position=torch.randn(2, TOKENS, DIM, dtype=torch.float64),
    )


def shaken(*modules: nn.Module) -> None:
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)


def decoder(refine: bool, eps: float = 1e-3) -> tuple[ConditionalDecoder, TiedDetectionHead]:
    torch.manual_seed(0)
    layer = partial(ConditionalDecoderLayer, dim=DIM, heads=2, hidden=DIM)
    spatial = AnchorSpatial(DIM) if refine else PointSpatial(DIM)
    found = ConditionalDecoder(
        layer, spatial, nn.LayerNorm(DIM), LAYERS, DIM, eps=eps, refine=refine
    ).double()
    head = TiedDetectionHead(3, DIM, LAYERS, two_stage=False).double()
    shaken(found, head)
    return found, head


def queries(coordinates: int) -> Queries:
    return Queries(
        content=torch.randn(2, QUERIES, DIM, dtype=torch.float64),
        anchors=torch.rand(2, QUERIES, coordinates, dtype=torch.float64) * 0.5 + 0.2,
        position=torch.randn(2, QUERIES, DIM, dtype=torch.float64) if coordinates == 2 else None,
    )


def test_a_point_is_encoded_y_before_x() -> None:
    start = queries(2)
    place = PointSpatial(DIM)(start.content, start.anchors, start.position)
    x, y = start.anchors.unbind(-1)
    assert_close(place.sine[..., : DIM // 2], sine_coordinates(y[..., None], DIM // 2))
    assert_close(place.sine[..., DIM // 2 :], sine_coordinates(x[..., None], DIM // 2))
    assert place.position is start.position
    with pytest.raises(ValueError, match="no position"):
        PointSpatial(DIM)(start.content, start.anchors, None)


def test_each_axis_is_modulated_by_the_wanted_size_over_the_own_one() -> None:
    start, spatial = queries(4), AnchorSpatial(DIM).double()
    sine = spatial(start.content, start.anchors, None).sine
    x, y, width, height = start.anchors.unbind(-1)
    wanted = spatial.wanted_size(start.content).sigmoid()
    plain_y, plain_x = (sine_coordinates(c[..., None], DIM // 2) for c in (y, x))
    assert_close(sine[..., : DIM // 2], plain_y * (wanted[..., 1] / height)[..., None])
    assert_close(sine[..., DIM // 2 :], plain_x * (wanted[..., 0] / width)[..., None])


def test_a_box_without_area_is_looked_for_and_refined_in_finite_numbers() -> None:
    ours, head = decoder(refine=True)
    start = queries(4)
    start.anchors[:, 0] = 0.0
    for layer in ours(start, memory(), head, None).layers:
        assert layer.logits.isfinite().all()
        assert layer.boxes.isfinite().all()


def test_layers_get_what_the_paper_says() -> None:
    """Sines are scaled by the content from the second layer on; only the first has the further
    projection of positions; points stay where they are.
    """
    ours, head = decoder(refine=False, eps=1e-5)
    start, inputs = queries(2), memory()
    found = ours(start, inputs, head, None)
    content = start.content
    for i, layer in enumerate(ours.layers):
        place = ours.spatial(content, start.anchors, start.position)
        if i:
            place = place._replace(sine=place.sine * ours.sine_scale(content))
        assert (layer.cross_attention.query_position is not None) == (i == 0)
        content, attended = layer(content, place, inputs, None)
        normed = ours.norm(content)
        offsets = head.regress[0](normed)
        centres = offsets[..., :2] + logit(start.anchors, 1e-5)
        boxes = torch.cat([centres, offsets[..., 2:]], -1).sigmoid()
        assert_close(found.layers[i].boxes, boxes)
        assert_close(found.layers[i].logits, head.classify[0](normed))
        assert_close(found.taps[CROSS_ATTENTION][i].hidden, attended)


def test_boxes_are_refined_before_the_norm_and_read_after_it() -> None:
    ours, head = decoder(refine=True)
    start, inputs = queries(4), memory()
    found = ours(start, inputs, head, None)
    content, anchors = start.content, start.anchors
    for i, layer in enumerate(ours.layers):
        place = ours.spatial(content, anchors, None)
        if i:
            place = place._replace(sine=place.sine * ours.sine_scale(content))
        content, _ = layer(content, place, inputs, None)
        read = head.regress[0](ours.norm(content)) + logit(anchors, 1e-3)
        assert_close(found.layers[i].boxes, read.sigmoid())
        anchors = (head.regress[0](content) + logit(anchors, 1e-3)).sigmoid()


def test_void_tokens_are_not_looked_at() -> None:
    ours, head = decoder(refine=True)
    start, inputs = queries(4), memory()
    before = ours(start, inputs, head, None).layers[-1]
    inputs.tokens[1, 9:] += 1
    assert_close(ours(start, inputs, head, None).layers[-1].logits, before.logits)


def test_every_box_comes_with_every_pattern() -> None:
    init = AnchorQueries(QUERIES, Patterns(3, DIM))
    head = TiedDetectionHead(3, DIM, LAYERS, two_stage=False)
    (found,) = init(memory(), head)
    assert found.content.shape == (2, 3 * QUERIES, DIM)
    for p in range(3):
        rows = slice(p * QUERIES, (p + 1) * QUERIES)
        assert_close(found.anchors[1, rows].float(), init.anchors.sigmoid())
        assert init.content.patterns is not None
        assert_close(found.content[0, rows], init.content.patterns[p].expand(QUERIES, DIM))
    (plain,) = AnchorQueries(QUERIES, Patterns(0, DIM))(memory(), head)
    assert plain.content.shape == (2, QUERIES, DIM)
    assert not plain.content.any()


@pytest.mark.parametrize("patterns", [0, 2])
def test_the_unknown_label_has_indicator_zero(patterns: int) -> None:
    content = UnknownLabel(DIM, patterns)
    rows = content()
    assert rows.shape == (max(patterns, 1), DIM)
    added = content.patterns()
    assert_close(rows[:, :-1], added[:, :-1] + content.label)
    assert_close(rows[:, -1], added[:, -1])


def test_tables_give_further_groups_of_boxes() -> None:
    init = AnchorQueries(QUERIES, UnknownLabel(DIM))
    head = TiedDetectionHead(3, DIM, LAYERS, two_stage=False)
    table = QueryTable(4, DIM, content=False, anchors=True)
    main, further = init(memory(), head, [table])
    assert table.anchors is not None
    assert_close(further.anchors[0].float(), table.anchors.sigmoid())
    assert_close(further.content[0, 0], main.content[0, 0])
    own = QueryTable(4, DIM, content=True, anchors=True)
    assert own.content is not None
    assert_close(init(memory(), head, [own])[1].content[1], own.content)


def test_tables_give_further_groups_of_points() -> None:
    init = PointQueries(QUERIES, DIM)
    head = TiedDetectionHead(3, DIM, LAYERS, two_stage=False)
    table = QueryTable(4, DIM, content=False, position=True)
    main, further = init(memory(), head, [table])
    assert main.anchors.shape == (2, QUERIES, 2)
    assert not main.content.any()
    assert table.position is not None
    expected = init.reference_points(table.position).sigmoid()
    assert_close(further.anchors[0].float(), expected)


def test_a_layers_loss_reaches_the_layer_before() -> None:
    """Look forward twice: boxes of the second layer are refined from the first layer's."""
    ours, head = decoder(refine=True)
    start = queries(4)
    start.anchors.requires_grad_()
    second = ours(start, memory(), head, None).layers[1].boxes
    first_layer = list(ours.layers[0].parameters())
    gradients = torch.autograd.grad(second.sum(), [*first_layer, start.anchors])
    assert all(isinstance(g, Tensor) for g in gradients)
    assert gradients[-1].abs().sum() > 0
