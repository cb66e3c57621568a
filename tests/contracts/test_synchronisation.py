"""How often a training step waits for the device, by cause, on a pretended one.

Deformable attention is there what it is on the CPU: the Triton kernels run on GPUs alone, and what
their callers wait for is not counted here.
"""

from unittest.mock import Mock

import pytest
import torch
from simulated_device import DEVICE, HOST, DeviceTensor, Watch, to_device, watched
from tiny import batch, build
from torch import Tensor, nn

from codetr import suppression
from codetr.data.datamodule import CocoDataModule
from codetr.evaluation import Postprocess
from codetr.loss_terms import total_loss
from codetr.nms import SoftNms
from codetr.structures import Batch, ImageInfo, Predictions
from codetr.training.ema import Average, hyperbolic
from codetr.training.losses import training_losses

CO_DINO = ("one_to_one", "denoising", "collaborative")
COSTS = ("device to host", "host_copy.py")
RPN_AND_REGIONS = ("device to host", "supervision/assigners/sampling.py")
NMS = ("nms", "suppression.py")
POSITIVES = ("device to host", "supervision/schemes/positives.py")
HEADS = {
    (): {},
    ("atss",): {POSITIVES: 1},
    ("atss", "rcnn"): {
        POSITIVES: 1,
        RPN_AND_REGIONS: 2,
        ("device to host", "supervision/aux_heads/rpn.py"): 1,
        ("device to host", "models/ops/roi_pool.py"): 1,
    },
}
OTHERS = {
    ("one_to_one", "hybrid"): {COSTS: 1},
    ("one_to_one", "group"): {COSTS: 1},
    ("one_to_one", "teacher"): {COSTS: 1},
    ("one_to_one", "mixed"): {COSTS: 1, ("device to host", "supervision/assigners/top_k.py"): 1},
}


def arrived(data: Batch) -> Batch:
    """A batch on its way from the host, as Lightning has it taken."""
    return CocoDataModule.transfer_batch_to_device(Mock(), data, DEVICE, 0)


def waits(
    schemes: tuple[str, ...], heads: tuple[str, ...], counts: tuple[int, ...], *more: str
) -> dict:
    """Cause and file of every wait in a step from a batch on the host, forward and backward, after
    a first step that fills caches. Images have another size in the second, as in training: a cache
    by size helps nothing.
    """
    detector, parts = build(schemes, heads, *more)
    with watched() as watch:
        to_device(detector)
        to_device(parts)
        for size in (64, 96):
            watch.waits.clear()
            data = arrived(batch(counts, size))
            total_loss(training_losses(detector, parts, data)).backward()  # type: ignore[arg-type]
    return dict(watch.waits)


@pytest.mark.parametrize("heads", HEADS, ids="+".join)
@pytest.mark.parametrize("counts", [(3, 2), (3, 2, 4, 1)], ids=len)
def test_a_co_dino_step_waits_as_often_at_any_batch_size_but_for_one_nms_per_image(
    heads: tuple[str, ...], counts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suppression, "_choice", "image")
    expected = {COSTS: 1, **HEADS[heads]}
    if "rcnn" in heads:
        expected[NMS] = len(counts)
    assert waits(CO_DINO, heads, counts) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("image", {NMS: 3}), ("level", {NMS: 6}), ("fixed_point", {("equal", "suppression.py"): 3})],
)
def test_suppression_waits_for_no_more_than_its_way_needs(
    name: str, expected: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once per image, once per set, or for the news that nothing changes any more."""
    monkeypatch.setattr(suppression, "_choice", name)
    boxes, scores = torch.rand(3, 12, 4).sort(dim=2).values, torch.rand(3, 12)
    with watched() as watch:
        suppression.surviving(DeviceTensor(boxes), DeviceTensor(scores), (7, 5), 0.5)
    assert watch.waits == expected


@pytest.mark.parametrize("schemes", OTHERS, ids="+".join)
def test_all_matching_schemes_fetch_their_costs_together(schemes: tuple[str, ...]) -> None:
    assert waits(schemes, (), (3, 2)) == OTHERS[schemes]


@pytest.mark.parametrize("counts", [(3, 2), (3, 2, 4, 1)], ids=len)
def test_masks_wait_as_often_at_any_batch_size(counts: tuple[int, ...]) -> None:
    regions = {
        ("device to host", "supervision/assigners/sampling.py"): 1,
        ("device to host", "models/ops/roi_pool.py"): 1,
    }
    found = waits(("one_to_one",), (), counts, "masks=refine_small")
    assert found == {COSTS: 1, **regions}


def test_averaging_the_weights_waits_for_nothing() -> None:
    source = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm2d(4))
    average = Average(source, HOST, 0.9, hyperbolic)
    with watched() as watch:
        to_device(source)
        to_device(average.module)
        for _ in range(3):
            average.update_parameters(source)
            average.copy_buffers(source)
    assert not watch.waits
    assert average.n_averaged.device == HOST
    assert int(average.n_averaged) == 3


@pytest.mark.parametrize("images", [1, 4])
def test_detections_are_fetched_at_once_for_soft_nms(images: int) -> None:
    """And how many of them have a score, before."""
    postprocess = Postprocess(max_detections=5, pre_nms=20, nms=SoftNms(0.5))
    logits, boxes = torch.randn(images, 10, 3), torch.rand(images, 10, 4)
    sizes = torch.full((images, 2), 64)
    infos = [ImageInfo(image_id=0, original_size=(64, 64), scale=(1.0, 1.0))] * images
    with watched() as watch:
        given = Predictions(logits=logits, boxes=boxes).map(DeviceTensor)
        found = postprocess(given, DeviceTensor(sizes), infos)
        watched_waits = dict(watch.waits)
        fetched = [detections.map(Tensor.cpu) for detections in found]
    files = {
        ("device to host", "evaluation/postprocess.py"): 1,
        ("device to host", "nms.py"): 1,
    }
    assert watched_waits == files
    plain = postprocess(Predictions(logits=logits, boxes=boxes), sizes, infos)
    for ours, expected in zip(fetched, plain, strict=True):
        assert torch.equal(ours.boxes_xyxy_px, expected.boxes_xyxy_px)
        assert torch.equal(ours.scores, expected.scores)


def test_the_pretended_device_sees_what_a_real_one_would_wait_for() -> None:
    with watched() as watch:
        x = DeviceTensor(torch.tensor([1.0, 0.0, 2.0]))
        assert x.sum().item() == 3
        assert bool((x > 0).any())
        assert x.tolist() == [1, 0, 2]
        assert x.nonzero().shape == (2, 1)
        assert x[x > 0].shape == (2,)
        assert torch.tensor([1.0], device=x.device).device == x.device
        torch.ones(3).to(x.device, non_blocking=True)
        y = torch.zeros_like(x)
        y[:2] = x[1:]
        assert y.cpu().tolist() == [0, 2, 0]
    assert _by_cause(watch) == {
        "item": 2,
        "device to host": 2,
        "nonzero": 1,
        "boolean index": 1,
        "blocking host to device": 1,
    }


def _by_cause(watch: Watch) -> dict[str, int]:
    found: dict[str, int] = {}
    for (cause, _), number in watch.waits.items():
        found[cause] = found.get(cause, 0) + number
    return found
