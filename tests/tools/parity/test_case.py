"""The inputs of a recorded run, as the data pipeline of its recipe would give them."""

from pathlib import Path

import pytest
import torch

from codetr.data.augment import LsjEval
from codetr.data.collate import Collate
from codetr.data.sample import BoxSet, Sample
from codetr.structures import Batch, Pyramid
from codetr.supervision.aux_heads.anchors import AnchorGrid
from tools.parity.inputs import make_batch
from tools.parity.recorded import Recorded

SIZES = [[64, 64], [48, 32]]
CANVAS = 64
RECORDED = Recorded(
    folder=Path("none"),
    info={"seeds": [1, 2], "sizes": SIZES, "num_gts": [3, 2]},
    keys={"entries": [["query_head.cls_branches.0.bias", [80]]]},
    arrays={},
    losses={},
)


def recorded_batch(whole_canvas: bool) -> Batch:
    return make_batch(RECORDED.inputs(), whole_canvas=whole_canvas)


def usable(batch: Batch) -> torch.Tensor:
    """(B, A): which anchors of the auxiliary heads count."""
    maps = tuple(torch.zeros(2, 1, CANVAS // s, CANVAS // s) for s in (8, 16))
    return AnchorGrid(scales=(8.0,))(
        Pyramid(maps=maps, strides=(8, 16)), batch.images.padded_sizes
    ).usable


def collated() -> Batch:
    none = BoxSet.ground_truth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    samples = [
        Sample(
            image=torch.zeros(3, *size, dtype=torch.uint8),
            targets=none,
            image_id=i,
            original_size=(size[0], size[1]),
        )
        for i, size in enumerate(SIZES)
    ]
    return Collate()([LsjEval(CANVAS)(sample) for sample in samples])


def test_under_large_scale_jitter_the_whole_canvas_counts() -> None:
    """Images smaller than the canvas: their anchors are usable everywhere, as in training."""
    batch, expected = recorded_batch(True), collated()
    for name in ("sizes", "padded_sizes", "padding"):
        assert torch.equal(getattr(batch.images, name), getattr(expected.images, name)), name
    assert batch.targets[1].size.tolist() == expected.targets[1].size.tolist()
    assert usable(batch).all()


@pytest.mark.parametrize("whole_canvas", [False, True])
def test_boxes_lie_where_they_were_recorded(whole_canvas: bool) -> None:
    """In pixels they are the same, whatever they are relative to."""
    batch, own = (recorded_batch(kind) for kind in (whole_canvas, False))
    for a, b in zip(batch.targets, own.targets, strict=True):
        torch.testing.assert_close(a.boxes * a.size.repeat(2), b.boxes * b.size.repeat(2))


def test_otherwise_an_image_counts_up_to_its_own_size() -> None:
    batch = recorded_batch(False)
    assert batch.images.sizes.tolist() == batch.images.padded_sizes.tolist() == SIZES
    assert usable(batch)[0].all()
    assert not usable(batch)[1].all()
    assert batch.images.padding[1, 48:].all()
