"""What every file in conf/aux_heads owes, alone, in pairs, twice, and over processes."""

from itertools import combinations
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tiny import backward, batch, build, composed, options, without_gradient
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from warm import run_ranks

from codetr.loss_terms import total_loss
from codetr.structures import Batch
from codetr.training.branches import branch_key
from codetr.training.losses import training_losses

SCHEMES = ("one_to_one", "collaborative")
HEADS = options("aux_heads")
DENSE = ("atss", "fcos", "gfl", "paa", "retinanet")
COUNTS = [(3, 2), (3, 0), (0, 0), (1, 1), (300, 5)]
WORLD = 2


def key(head: str) -> str:
    """Under which a file's head is trained: variants are called KEY_..., and exclude each other."""
    return head.split("_")[0]


PAIRS = [pair for pair in combinations(HEADS, 2) if key(pair[0]) != key(pair[1])]


@pytest.mark.parametrize("head", HEADS)
def test_a_file_sets_the_head_of_its_name(head: str) -> None:
    assert list(composed([f"aux_heads=[{head}]"]).aux_heads) == [key(head)]


@pytest.mark.parametrize("head", HEADS)
def test_a_head_is_evaluated_by_the_name_that_chose_it(head: str) -> None:
    """Or by its key. Another variant of the same key is not taken for it."""
    heads = composed([f"aux_heads=[{head}]"]).aux_heads
    own = {name for name in HEADS if branch_key(name, heads) in heads}
    assert own == {head, key(head)}


def test_a_branch_that_is_no_head_keeps_its_name() -> None:
    heads = composed(["aux_heads=[rcnn_mask]"]).aux_heads
    for name in ("main", "fcos", "rcnn_", "rcnn_more", "rcnn_/../rcnn_mask", ""):
        assert branch_key(name, heads) == name
    assert branch_key("rcnn_mask", {}) == branch_key("rcnn_mask", {"rcnn": None}) == "rcnn_mask"


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_every_head_reaches_every_parameter(head: str, counts: tuple[int, ...]) -> None:
    detector, schemes = build(SCHEMES, (head,))
    assert backward(detector, schemes, batch(counts)).isfinite()
    assert without_gradient(detector, schemes) == []


@pytest.mark.parametrize("head", HEADS)
def test_every_head_finds_objects_by_itself(head: str) -> None:
    """In pixels of the images, best first, whatever kind of suppression it has."""
    detector, schemes = build(SCHEMES, (head,))
    data, scheme = batch((3, 0)), schemes["collaborative"]
    with torch.no_grad():
        pyramid = scheme.auxiliary_pyramid(detector.encode(data.images))
        found = scheme.head(key(head)).predict(pyramid, data.images)
    for one, (height, width) in zip(found, data.images.sizes.tolist(), strict=True):
        assert one.boxes_xyxy_px.shape == (len(one), 4)
        assert one.scores.diff().le(0).all()
        limits = torch.tensor([width, height]).repeat(2) + 1e-3  # means are rounded
        assert ((one.boxes_xyxy_px >= 0) & (one.boxes_xyxy_px <= limits)).all()
        assert ((one.labels >= 0) & (one.labels < detector.num_classes)).all()


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_every_pair_of_heads_reaches_every_parameter(pair: tuple[str, str]) -> None:
    detector, schemes = build(SCHEMES, pair)
    for counts in ((300, 5), (0, 0)):
        assert backward(detector, schemes, batch(counts)).isfinite()
        assert without_gradient(detector, schemes) == []


@pytest.mark.parametrize("pair", [("atss", "rcnn"), ("paa", "fcos")], ids="+".join)
def test_heads_keep_the_order_of_the_list(pair: tuple[str, str]) -> None:
    for heads in (pair, pair[::-1]):
        _, schemes = build(SCHEMES, heads)
        assert tuple(schemes["collaborative"].heads) == heads


@pytest.mark.parametrize("head", HEADS)
def test_the_same_kind_twice(head: str) -> None:
    """Two heads of a kind have their own weights, settings, losses and queries."""
    detector, schemes = build(
        SCHEMES,
        (head,),
        f"+aux_heads@aux_heads.second={head}",
        "aux_heads.second.cls_weight=0.5",
    )
    heads = schemes["collaborative"].heads
    assert list(heads) == [key(head), "second"]
    assert [one.cls_weight for one in heads.values()] == [1.0, 0.5]
    assert backward(detector, schemes, batch((3, 2))).isfinite()
    assert without_gradient(detector, schemes) == []
    names = training_losses(detector, schemes, batch((3, 2)))
    for name in (key(head), "second", f"positive_{key(head)}", "positive_second"):
        assert any(n.startswith(f"collaborative/{name}/") for n in names)


@pytest.mark.parametrize("head", DENSE)
@pytest.mark.parametrize("depth", [0, 5])
def test_number_of_convolutions_is_a_setting(head: str, depth: int) -> None:
    second = (f"+aux_heads@aux_heads.second={head}", "aux_heads.second.num_convs=2")
    _, schemes = build(SCHEMES, (head,), f"aux_heads.{head}.num_convs={depth}", *second)
    heads = schemes["collaborative"].heads
    assert [len(one.reg_tower) for one in heads.values()] == [depth, 2]


class Step(nn.Module):
    """A training step as one module, as Lightning wraps it."""

    def __init__(self, detector: nn.Module, schemes: nn.Module) -> None:
        super().__init__()
        self.detector, self.schemes = detector, schemes

    def forward(self, data: Batch) -> Tensor:
        return total_loss(training_losses(self.detector, self.schemes, data))


def _train(rank: int, folder: Path) -> None:
    """Two steps of every head; the second one fails if a parameter was left out of the first."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=WORLD
    )
    for head in HEADS:
        torch.manual_seed(0)
        model = Step(*build(SCHEMES, (head,)))
        wrapped = DistributedDataParallel(model)
        for _ in range(2):
            wrapped.zero_grad()
            wrapped(batch((3, 2) if rank == 0 else (0, 0))).backward()
        own = torch.stack([p.grad.norm() for p in model.parameters() if p.requires_grad])
        first = own.clone()
        dist.broadcast(first, 0)
        assert own.isfinite().all(), head
        assert torch.equal(own, first), head
    dist.destroy_process_group()


def test_every_head_trains_over_processes_of_which_one_has_no_boxes(tmp_path: Path) -> None:
    run_ranks(_train, (tmp_path,), WORLD)
