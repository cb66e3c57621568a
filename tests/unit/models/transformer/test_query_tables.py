"""Queries of further groups: the detector's own way of making them, from other learned rows."""

import pytest
import torch
from test_queries import CLASSES, DIM, LAYERS, head, memory
from torch.testing import assert_close

from codetr.models.heads import DetectionHead
from codetr.models.transformers import (
    LearnedQueries,
    MixedQueries,
    PositionedQueries,
    ProposalStage,
    QueryTable,
)

MAIN, MORE = 3, 4


def two_stage(kind: str) -> MixedQueries | PositionedQueries:
    if kind == "mixed":
        return MixedQueries(ProposalStage(MAIN, DIM), DIM).double()
    stage = ProposalStage(MAIN, DIM, rank_by="objectness")
    return PositionedQueries(stage, DIM, mixed=kind == "positioned").double()


@pytest.mark.parametrize("kind", ["mixed", "positioned", "unlearned"])
def test_ranks_go_on_where_the_main_queries_end(kind: str) -> None:
    start, made, source = two_stage(kind), head(), memory()
    learned = kind != "unlearned"
    table = QueryTable(MORE, DIM, content=learned, skip=MAIN).double()
    same = QueryTable(MAIN, DIM, content=learned).double()
    main, further, again = start(source, made, [table, same])
    (alone,) = start(source, made)
    for one, other in ((alone.anchors, again.anchors), (alone.content, main.content)):
        assert_close(one, other)
    assert_close(alone.anchors, main.anchors)
    assert_close(alone.proposals.boxes, main.proposals.boxes)
    whole = two_stage(kind)
    whole.load_state_dict({**start.state_dict()}, strict=False)
    whole.stage.num_queries = MAIN + MORE
    if learned:
        whole.content = torch.nn.Parameter(torch.cat([start.content, table.content]))
    (joint,) = whole(source, made)
    assert_close(torch.cat([main.anchors, further.anchors], dim=1), joint.anchors)
    assert_close(torch.cat([main.content, further.content], dim=1), joint.content)
    if main.position is not None:
        assert_close(torch.cat([main.position, further.position], dim=1), joint.position)
    assert not further.anchors.requires_grad
    assert further.proposals is None


def test_fewer_tokens_than_ranks_give_fewer_queries() -> None:
    start, made, source = two_stage("mixed"), head(), memory()
    tables = [QueryTable(9, DIM, skip=25).double(), QueryTable(9, DIM, skip=99).double()]
    _, first, second = start(source, made, tables)
    assert (first.content.shape[1], second.content.shape[1]) == (5, 0)


def test_one_stage_queries_learn_content_and_position() -> None:
    start = LearnedQueries(MAIN, DIM).double()
    made = DetectionHead(CLASSES, DIM, LAYERS, two_stage=False).double()
    table = QueryTable(MORE, DIM, position=True).double()
    _, further = start(memory(), made, [table])
    assert_close(further.content, table.content.expand(2, -1, -1))
    assert_close(further.position, table.position.expand(2, -1, -1))
    points = start.reference_points(table.position).sigmoid()
    assert_close(further.anchors, points.expand(2, -1, -1))
    assert start.form.rows == ("content", "position")
    assert two_stage("mixed").form.rows == ("content",)
    for table in (QueryTable(MORE, DIM), QueryTable(MORE, DIM, content=False, position=True)):
        with pytest.raises(AssertionError):
            start(memory(), made, [table.double()])
    with pytest.raises(AssertionError):
        two_stage("mixed")(memory(), head(), [QueryTable(MORE, DIM, content=False)])
