"""What every file in conf/masks owes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from test_aux_heads import Step
from test_class_rows_are_known import check as check_class_rows
from tiny import backward, batch, build, composed, options, without_gradient
from torch.nn.parallel import DistributedDataParallel
from warm import run_ranks

from codetr.errors import UserError
from codetr.evaluation import Postprocess
from codetr.evaluation.detect import detect
from codetr.models.masks.refine import REFINED_FROM
from codetr.structures import Batch, ImageInfo
from codetr.supervision.schemes.protocol import require_fit
from codetr.training.losses import training_losses

CO_DINO = ("one_to_one", "denoising", "collaborative")
MASKS = options("masks")
COUNTS = [(3, 2), (3, 0), (0, 0), (300, 5)]


def infos(data: Batch) -> tuple[ImageInfo, ...]:
    """Of images that were enlarged by half before."""
    sizes = (data.images.sizes.float() / 1.5).round().int().tolist()
    return tuple(
        ImageInfo(image_id=b, original_size=(height, width), scale=(1.5, 1.5))
        for b, (height, width) in enumerate(sizes)
    )


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_every_parameter_is_reached(masks: str, counts: tuple[int, ...]) -> None:
    detector, schemes = build(CO_DINO, ("rcnn_mask", "atss"), f"masks={masks}")
    assert backward(detector, schemes, batch(counts)).isfinite()
    assert without_gradient(detector, schemes) == []


@pytest.mark.parametrize("masks", MASKS)
def test_objects_whose_masks_have_no_pixel_leave_gradients_finite(masks: str) -> None:
    """Also where the branch finds nothing in their place. Those of the other image are learned."""
    detector, schemes = build(CO_DINO, ("rcnn_mask",), f"masks={masks}")
    torch.nn.init.constant_(detector.mask_branch.head.classify[REFINED_FROM].bias, -20.0)
    data = batch((3, 2))
    first, second = data.targets
    empty = replace(first, masks=torch.zeros_like(first.masks))
    data = Batch(images=data.images, targets=(empty, second))
    assert backward(detector, schemes, data).isfinite()
    assert without_gradient(detector, schemes) == []


SCHEMES = [
    ("one_to_one",),
    ("one_to_one", "denoising"),
    ("one_to_one", "hybrid"),
    ("one_to_one", "group"),
    ("one_to_one", "teacher"),
    ("one_to_one", "mixed"),
    ("one_to_one", "denoising", "collaborative", "hybrid", "group", "teacher"),
]


@pytest.mark.parametrize("schemes", SCHEMES, ids="+".join)
def test_masks_are_learned_with_any_scheme(schemes: tuple[str, ...]) -> None:
    """Also in batches without a single object, where there is nothing to learn."""
    heads = ("rcnn_mask", "atss") if "collaborative" in schemes else ()
    detector, parts = build(schemes, heads, "masks=refine_small")
    losses = training_losses(detector, parts, batch((3, 2)))
    assert losses["masks/mask"].value > 0
    assert losses["masks/mask_iou"].value.isfinite()
    assert backward(detector, parts, batch((3, 2))).isfinite()
    assert without_gradient(detector, parts) == []
    empty = training_losses(detector, parts, batch((0, 0)))
    assert set(empty) == set(losses)
    assert empty["masks/mask"].value == empty["masks/mask_iou"].value == 0
    assert backward(detector, parts, batch((0, 0))).isfinite()
    assert without_gradient(detector, parts) == []


@pytest.mark.parametrize("masks", MASKS)
def test_losses_and_boxes_of_the_rest_do_not_depend_on_masks(masks: str) -> None:
    torch.manual_seed(0)
    plain, schemes = build(CO_DINO, ("atss",))
    masked, more = build(CO_DINO, ("atss",), f"masks={masks}")
    masked.load_state_dict(plain.state_dict(), strict=False)
    more.load_state_dict(schemes.state_dict(), strict=False)
    data = batch((3, 2))
    torch.manual_seed(1)
    without = training_losses(plain, schemes, data)
    torch.manual_seed(1)
    both = training_losses(masked, more, data)
    assert set(both) - set(without) == {"masks/mask", "masks/mask_iou"}
    for name, term in without.items():
        torch.testing.assert_close(both[name].value, term.value)
    postprocess = Postprocess(max_detections=20)
    with torch.no_grad():
        one = detect(plain.eval(), postprocess, data.images, infos(data))
        other = detect(masked.eval(), postprocess, data.images, infos(data))
    for a, b in zip(one, other, strict=True):
        assert a.cells is None
        assert torch.equal(a.boxes_xyxy_px, b.boxes_xyxy_px)
        assert torch.equal(a.scores, b.scores)
        assert b.cells is not None
        assert (b.cells.scores <= b.scores).all()


@pytest.mark.parametrize("masks", MASKS)
def test_masks_do_not_depend_on_the_batch_or_the_block(masks: str) -> None:
    detector, _ = build(("one_to_one",), (), f"masks={masks}")
    detector.eval()
    data, postprocess = batch((0, 0, 0)), Postprocess(max_detections=20)
    with torch.no_grad():
        together = detect(detector, postprocess, data.images, infos(data))
        detector.mask_branch.block = 7
        again = detect(detector, postprocess, data.images, infos(data))
        for b, (one, other) in enumerate(zip(together, again, strict=True)):
            alone = data.images.map(lambda values, b=b: values[b : b + 1])
            (single,) = detect(detector, postprocess, alone, infos(data)[b : b + 1])
            for found in (other, single):
                torch.testing.assert_close(
                    found.cells.probabilities, one.cells.probabilities, atol=1e-4, rtol=1e-4
                )
            assert one.bitmaps(infos(data)[b].original_size).shape == (
                len(one),
                *infos(data)[b].original_size,
            )


def test_no_detections_have_no_masks() -> None:
    detector, _ = build(("one_to_one",), (), "masks=refine_small")
    data = batch((0, 0))
    with torch.no_grad():
        memory = detector.eval().encode(data.images)
        found = Postprocess(max_detections=5)(
            detector.predict(memory), data.images.sizes, infos(data)
        )
        nothing = tuple(one.take(slice(0)) for one in found)
        for one in detector.mask_branch(memory, nothing, infos(data)):
            assert len(one.cells) == 0
            assert one.bitmaps((20, 30)).shape == (0, 20, 30)


@pytest.mark.parametrize("masks", MASKS)
def test_boxes_that_are_not_finite_come_out_without_a_pixel(masks: str) -> None:
    """So that whoever uses the detections of a broken model can say what they are."""
    detector, _ = build(("one_to_one",), (), f"masks={masks}")
    data = batch((0, 0))
    with torch.no_grad():
        memory = detector.eval().encode(data.images)
        found = Postprocess(max_detections=5)(
            detector.predict(memory), data.images.sizes, infos(data)
        )
        broken = tuple(
            replace(one, boxes_xyxy_px=torch.full_like(one.boxes_xyxy_px, value))
            for one, value in zip(found, (torch.nan, torch.inf), strict=True)
        )
        for one in detector.mask_branch(memory, broken, infos(data)):
            assert not one.boxes_xyxy_px.isfinite().any()
            assert not one.bitmaps((20, 30)).any()


def test_a_batch_without_masks_is_named() -> None:
    detector, schemes = build(("one_to_one",), (), "masks=refine_small")
    data = batch((3, 2))
    bare = tuple(replace(t, masks=None) for t in data.targets)
    with pytest.raises(UserError, match=r"data\.masks=true"):
        training_losses(detector, schemes, Batch(images=data.images, targets=bare))


def test_a_model_without_a_branch_is_named() -> None:
    detector, _ = build(("one_to_one",), ())
    _, schemes = build(("one_to_one",), (), "masks=refine_small")
    require_fit(build(("one_to_one",), (), "masks=refine_small")[0], schemes)
    with pytest.raises(UserError, match=r"scheme=\[masks\] trains a mask branch, but this model"):
        require_fit(detector, schemes)
    with pytest.raises(AttributeError):
        training_losses(detector, schemes, batch((3, 2)))


@pytest.mark.parametrize("masks", MASKS)
def test_rows_of_classes_are_known(masks: str) -> None:
    check_class_rows([f"masks={masks}", "aux_heads=[]"])


@pytest.mark.parametrize("masks", MASKS)
def test_every_model_takes_them(masks: str) -> None:
    for model in options("model"):
        cfg = composed([f"model={model}", f"masks={masks}"])
        assert cfg.model.detector.mask_branch.head.channels == cfg.model.dim


def _train(rank: int, folder: Path) -> None:
    """Two steps, as in ``test_aux_heads``."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    model = Step(*build(CO_DINO, ("rcnn_mask",), "masks=refine_small"))
    wrapped = DistributedDataParallel(model)
    for _ in range(2):
        wrapped.zero_grad()
        wrapped(batch((3, 2) if rank == 0 else (0, 0))).backward()
    own = torch.stack([p.grad.norm() for p in model.parameters() if p.requires_grad])
    first = own.clone()
    dist.broadcast(first, 0)
    assert own.isfinite().all()
    assert torch.equal(own, first)
    dist.destroy_process_group()


def test_they_train_over_processes_of_which_one_has_no_boxes(tmp_path: Path) -> None:
    run_ranks(_train, (tmp_path,), 2)
