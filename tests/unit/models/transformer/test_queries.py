"""Two-stage selection: the proposals of a grid, the best of them, and what becomes of them."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from codetr.models.heads import DetectionHead
from codetr.models.layers import sine_coordinates
from codetr.models.transformers import MixedQueries, PositionedQueries, ProposalStage
from codetr.models.transformers.queries import grid_proposals
from codetr.structures import Memory, Queries

DIM, CLASSES, LAYERS = 16, 3, 2
SHAPES = ((4, 6), (2, 3))


def memory(tokens: Tensor | None = None) -> Memory:
    """The second image fills the left upper 2 x 4 cells of the fine level."""
    fine = torch.zeros(2, 4, 6, dtype=torch.bool)
    fine[1] = True
    fine[1, :2, :4] = False
    padding = torch.cat([fine.flatten(1), fine[:, ::2, ::2].flatten(1)], dim=1)
    return Memory(
        tokens=torch.randn(2, 30, DIM, dtype=torch.float64) if tokens is None else tokens,
        padding=padding,
        shapes=SHAPES,
        strides=(8, 16),
        valid_ratios=torch.tensor([[[1, 1]] * 2, [[2 / 3, 0.5]] * 2], dtype=torch.float64),
    )


def head() -> DetectionHead:
    made = DetectionHead(CLASSES, DIM, LAYERS).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return made


def test_grid_proposals_are_squares_about_cell_centres() -> None:
    logits, usable = grid_proposals(memory())
    assert torch.equal(usable, ~memory().padding), "no cell centre is within 0.01 of the border"
    boxes = logits.sigmoid()
    row_1_column_2 = torch.tensor([2.5 / 6, 1.5 / 4, 0.05, 0.05], dtype=torch.float64)
    assert_close(boxes[0, 8], row_1_column_2)
    assert_close(boxes[1, 8], torch.tensor([2.5 / 4, 1.5 / 2, 0.05, 0.05], dtype=torch.float64))
    assert_close(boxes[0, 24], torch.tensor([0.5 / 3, 0.5 / 2, 0.1, 0.1], dtype=torch.float64))
    assert (logits[~usable] == math.inf).all()
    assert logits[usable].isfinite().all()


def test_cells_at_the_border_are_no_proposals() -> None:
    wide = Memory(
        tokens=torch.zeros(1, 60, DIM),
        padding=torch.zeros(1, 60, dtype=torch.bool),
        shapes=((1, 60),),
        strides=(8,),
        valid_ratios=torch.ones(1, 1, 2),
    )
    logits, usable = grid_proposals(wide)
    assert usable[0].tolist() == [False] + [True] * 58 + [False]  # 0.5 / 60 < 0.01
    assert (logits[0, [0, 59]] == math.inf).all()


def test_stage_predicts_from_usable_tokens_alone() -> None:
    made, stage = head(), ProposalStage(5, DIM).double()
    inputs = memory()
    proposals, _ = stage(inputs, made)
    void = inputs.padding
    assert (proposals.box_logits[void] == math.inf).all()
    anchors, usable = grid_proposals(inputs)
    hidden = stage.norm(stage.project(inputs.tokens[usable]))
    assert_close(proposals.logits[usable], made.proposals.classify(hidden))
    assert_close(proposals.box_logits[usable], made.proposals.regress(hidden) + anchors[usable])
    constant = proposals.logits[void]
    assert_close(constant, constant[:1].expand_as(constant))


def test_ranking_is_by_the_best_class_or_by_class_zero() -> None:
    logits = torch.tensor([[[0.0, 9, 0], [3, 0, 0], [1, 1, 7], [2, 0, 8]]])
    assert ProposalStage(3, DIM).select(logits, 3).tolist() == [[0, 3, 2]]
    assert ProposalStage(3, DIM, rank_by="objectness").select(logits, 3).tolist() == [[1, 3, 2]]
    assert ProposalStage(3, DIM).select(logits, 9).shape == (1, 4), "all of them if there are fewer"


def selected(
    init: nn.Module, made: DetectionHead, inputs: Memory
) -> tuple[Queries, Tensor, Tensor]:
    """Queries, and the logits and boxes of all proposals."""
    proposals, _ = init.stage(inputs, made)
    return init(inputs, made)[0], proposals.logits, proposals.box_logits.sigmoid()


def test_mixed_queries_hand_on_the_selected_proposals() -> None:
    made, init = head(), MixedQueries(ProposalStage(5, DIM), DIM).double()
    queries, logits, boxes = selected(init, made, memory())
    order = logits.amax(-1).argsort(dim=1, descending=True)[:, :5]
    for image in range(2):
        assert_close(queries.anchors[image], boxes[image, order[image]])
        assert_close(queries.proposals.boxes[image], boxes[image, order[image]])
        assert_close(queries.proposals.logits[image], logits[image, order[image]])
        assert_close(queries.content[image], init.content)
    assert queries.position is None
    assert not queries.anchors.requires_grad
    assert queries.proposals.boxes.requires_grad


def test_the_best_proposals_have_the_gradients_of_a_selection_from_all() -> None:
    made, stage, inputs = head(), ProposalStage(5, DIM).double(), memory()
    tokens = inputs.tokens.clone().requires_grad_()
    inputs = replace(inputs, tokens=tokens)
    leaves = [tokens, *stage.parameters(), *made.proposals.classify.parameters()]
    leaves += made.proposals.regress.parameters()

    def gradients(logits: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
        sides = torch.linspace(-1, 1, boxes.numel(), dtype=boxes.dtype).view_as(boxes)
        value = (weights * logits).sum() + (sides * boxes.sigmoid()).sum()
        return torch.autograd.grad(value, leaves)

    proposals, chosen = stage(inputs, made)
    rows = torch.arange(2)[:, None]
    expected = gradients(proposals.logits[rows, chosen], proposals.box_logits[rows, chosen])
    best = stage.best(inputs, made)
    assert_close(gradients(best.logits, best.box_logits), expected)
    usable = ~inputs.padding.gather(1, chosen)  # others are zeroed before they are read
    assert usable.any()
    assert (expected[0] != 0).any(-1).sum() == usable.sum()


def test_positioned_queries_embed_the_selected_anchors_once() -> None:
    stage = ProposalStage(5, DIM, rank_by="objectness")
    made, init = head(), PositionedQueries(stage, DIM).double()
    queries, logits, boxes = selected(init, made, memory())
    order = logits[..., 0].argsort(dim=1, descending=True)[:, :5]
    encoded = init.position_norm(init.position(sine_coordinates(queries.anchors, DIM // 2)))
    for image in range(2):
        assert_close(queries.anchors[image], boxes[image, order[image]])
        assert_close(queries.content[image], init.content)
    assert_close(queries.position, encoded[..., :DIM])
    assert_close(queries.proposals.boxes, boxes)
    assert_close(queries.proposals.logits, logits)
    assert not queries.anchors.requires_grad


def test_without_mixed_selection_the_content_is_the_embeddings_other_half() -> None:
    made, inputs = head(), memory()
    init = PositionedQueries(ProposalStage(5, DIM), DIM, mixed=False).double()
    (queries,) = init(inputs, made)
    encoded = init.position_norm(init.position(sine_coordinates(queries.anchors, DIM // 2)))
    assert_close(torch.cat([queries.position, queries.content], dim=-1), encoded)
    assert init.content is None


@pytest.mark.parametrize("kind", [MixedQueries, PositionedQueries])
def test_a_small_memory_gives_fewer_queries(kind: type[nn.Module]) -> None:
    (queries,) = kind(ProposalStage(50, DIM), DIM).double()(memory(), head())
    assert queries.content.shape == (2, 30, DIM)
    assert queries.anchors.shape == (2, 30, 4)
    assert queries.anchors.isfinite().all()
