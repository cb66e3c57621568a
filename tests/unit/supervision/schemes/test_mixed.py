"""Mixed supervision: what is read, what is measured, and what inference keeps."""

from collections.abc import Sequence
from functools import partial

import torch
from scoring import score
from torch import Tensor, nn
from torch.testing import assert_close

from codetr.models.detectors.protocol import MAIN
from codetr.structures import (
    CROSS_ATTENTION,
    Assignment,
    Batch,
    Decoded,
    Images,
    Predictions,
    Queries,
    QueryGroup,
    Tap,
    Targets,
)
from codetr.supervision.assigners import TopKAssigner
from codetr.supervision.criteria import FocalClassification, SetCriterion
from codetr.supervision.schemes.mixed import Branch, Mixed

DIM, CLASSES, QUERIES, LAYERS = 8, 3, 12, 2


class Fixed(nn.Module):
    """An assigner that gives the same pairs for every layer."""

    def __init__(self, pairs: Sequence[tuple[int, int, int]]) -> None:
        super().__init__()
        table = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 3)
        self.pairs = Assignment(image=table[:, 0], query=table[:, 1], target=table[:, 2])

    def forward(self, layers: Sequence[Predictions], targets: object) -> list[Assignment]:
        return [self.pairs] * len(layers)


def scheme(assigner: nn.Module | None = None) -> Mixed:
    criterion = SetCriterion(FocalClassification(), cls=2.0)
    chosen = TopKAssigner() if assigner is None else assigner
    return Mixed(chosen, criterion, partial(Branch, DIM, 16), LAYERS).double()  # type: ignore[arg-type]


def batch(counts: Sequence[int] = (3, 1)) -> Batch:
    sizes = torch.tensor([[30, 40]] * len(counts))
    images = Images(
        pixels=torch.zeros(len(counts), 3, 30, 40),
        padding=torch.zeros(len(counts), 30, 40, dtype=torch.bool),
        sizes=sizes,
        padded_sizes=sizes,
    )
    targets = tuple(
        Targets(
            boxes=torch.rand(count, 4, dtype=torch.float64) * 0.4 + 0.3,
            labels=torch.tensor([2, 1, 0][:count], dtype=torch.int64),
            weights=torch.ones(count),
            size=torch.tensor([40.0, 30.0]),
        )
        for count in counts
    )
    return Batch(images=images, targets=targets)


def read(head: Tensor, hidden: Tensor, anchors: Tensor) -> Predictions:
    return Predictions(logits=hidden @ head, boxes=(anchors + hidden[..., :4]).sigmoid())


def decoded(taps: int = LAYERS) -> dict[str, Decoded]:
    """Taps whose heads are linear, each with its own."""
    queries = Queries(content=torch.zeros(2, QUERIES, DIM), anchors=torch.zeros(2, QUERIES, 4))
    made = tuple(
        Tap(
            hidden=torch.randn(2, QUERIES, DIM, dtype=torch.float64),
            anchors=torch.randn(2, QUERIES, 4, dtype=torch.float64),
            read=partial(read, torch.randn(DIM, CLASSES, dtype=torch.float64)),
        )
        for _ in range(taps)
    )
    group = QueryGroup(name=MAIN, queries=queries)
    return {MAIN: Decoded(layers=(), group=group, taps={CROSS_ATTENTION: made})}


def test_proposes_nothing() -> None:
    proposal = scheme().propose(None)  # type: ignore[arg-type]
    assert (proposal.groups, proposal.losses) == ((), {})


def test_each_layers_own_heads_read_its_tap_behind_its_own_branch() -> None:
    mixed, answer = scheme(), decoded()
    for i, layer in enumerate(mixed.predictions(answer[MAIN])):
        tap, branch = answer[MAIN].taps[CROSS_ATTENTION][i], mixed.branches[i]
        block = branch.feed_forward
        hidden = tap.hidden + block.contract(torch.relu(block.expand(tap.hidden)))
        expected = tap.read(branch.norm(hidden), tap.anchors)
        assert_close(layer.logits, expected.logits)
        assert_close(layer.boxes, expected.boxes)


def test_losses_by_layer_and_term_with_their_weights() -> None:
    losses = score(scheme(), decoded(), batch())
    weights = {"cls": 2.0, "bbox": 5.0, "giou": 2.0}
    assert {name: term.weight for name, term in losses.items()} == {
        f"layer{i}/{term}": weight for i in range(LAYERS) for term, weight in weights.items()
    }


def test_sums_are_divided_by_the_number_of_targets() -> None:
    """And boxes count once per pair, a query's second target too."""
    pairs = [(0, 4, 0), (0, 5, 0), (0, 4, 1), (1, 0, 3)]
    mixed, answer, data = scheme(Fixed(pairs)), decoded(), batch()
    losses = score(mixed, answer, data)
    wanted = torch.cat([t.boxes for t in data.targets])
    for i, layer in enumerate(mixed.predictions(answer[MAIN])):
        distance = sum((layer.boxes[b, q] - wanted[t]).abs().sum() for b, q, t in pairs)
        assert_close(losses[f"layer{i}/bbox"].value, distance / 4)


def test_a_query_has_the_class_of_its_last_pair() -> None:
    both = [(0, 4, 1), (0, 4, 0), (0, 5, 2)]
    one = [(0, 4, 0), (0, 5, 2)]
    torch.manual_seed(1)
    first = scheme(Fixed(both))
    torch.manual_seed(1)
    second = scheme(Fixed(one))
    answer, data = decoded(), batch()
    found, expected = score(first, answer, data), score(second, answer, data)
    assert_close(found["layer0/cls"].value, expected["layer0/cls"].value)
    assert not torch.allclose(found["layer0/bbox"].value, expected["layer0/bbox"].value)


def test_without_boxes_losses_are_finite_and_reach_every_parameter() -> None:
    mixed = scheme()
    losses = score(mixed, decoded(), batch((0, 0)))
    torch.stack([term.value for term in losses.values()]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixed.parameters())
    assert losses["layer0/bbox"].value == 0
