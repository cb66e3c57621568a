"""ATSS against the official numbers, and on batches with few or no boxes."""

import pytest
import torch

from codetr.aux_heads.atss import AtssHead, centerness_target
from codetr.aux_heads.detections import ClasswiseNms, DenseSelection
from codetr.boxes import xyxy_to_cxcywh
from codetr.structures import total_loss


def rename(key: str) -> str:
    key = key.removeprefix("bbox_head.0.").removeprefix("atss_").removesuffix(".scale")
    return (
        key.replace("cls_convs", "cls_tower")
        .replace("reg_convs", "reg_tower")
        .replace(".gn.", ".norm.")
    )


@pytest.mark.golden
def test_atss_equals_the_official_head(golden, monkeypatch) -> None:
    case = golden("atss")
    head = AtssHead(
        num_classes=80,
        channels=256,
        num_levels=6,
        selection=DenseSelection(nms=ClasswiseNms(iou=0.6), threshold=0.05),
    ).double()
    head.load_state_dict(case.weights(rename))
    pyramid, batch = case.pyramid, case.batch

    predictions = head.predictions(pyramid)
    monkeypatch.setattr(head, "predictions", lambda _: predictions)  # the slow part, once
    with torch.no_grad():
        sizes = [h * w for h, w in pyramid.shapes]
        for level, (shape, logits, deltas, centerness) in enumerate(
            zip(
                pyramid.shapes,
                predictions.logits.split(sizes, dim=1),
                predictions.deltas.split(sizes, dim=1),
                predictions.centerness[..., None].split(sizes, dim=1),
                strict=True,
            )
        ):
            for name, value in (("cls", logits), ("reg", deltas), ("ctr", centerness)):
                case.close(f"out/{name}{level}", value.transpose(1, 2).unflatten(2, shape))
        for image, found in enumerate(head.predict(pyramid, batch.images)):
            stored = torch.from_numpy(case.io[f"det{image}_boxes_scores"]).double()
            torch.testing.assert_close(found.boxes_xyxy_px, stored[:, :4], atol=1e-3, rtol=1e-5)
            torch.testing.assert_close(found.scores, stored[:, 4], atol=1e-5, rtol=1e-5)
            case.equal(f"det{image}_labels", found.labels)

    output = head(pyramid, batch)
    anchors = head.grid(pyramid, batch.images.padded_sizes)
    features = torch.cat([m.flatten(2).transpose(1, 2) for m in pyramid.maps], dim=1)
    for image, (found, target) in enumerate(zip(output.candidates, batch.targets, strict=True)):
        positive = (found.labels < 80).nonzero().squeeze(1)
        name = f"assign{image}_pos"
        case.equal(f"{name}_idx", positive)
        case.equal(f"{name}_label", found.labels[positive])
        stored = torch.from_numpy(case.io[f"{name}_anchor"]).double()
        torch.testing.assert_close(anchors.boxes[positive], stored, atol=1e-3, rtol=1e-5)
        whwh = target.size_whwh
        torch.testing.assert_close(found.boxes[positive], xyxy_to_cxcywh(stored) / whwh)
        truth = torch.from_numpy(case.io[f"{name}_target_box"]).double()
        torch.testing.assert_close(found.targets[positive], xyxy_to_cxcywh(truth) / whwh)
        centerness = centerness_target(anchors.boxes[positive], truth)
        case.close(f"{name}_centerness", centerness)
        unusable = ~anchors.usable[image]
        assert int(anchors.usable[image].sum()) == case.expected["counts"]["usable"][image]
        assert not found.boxes[unusable].any()
        assert (found.labels[unusable] == 80).all()
        torch.testing.assert_close(found.features, features[image])

    for name, term in output.losses.items():
        weight = {"cls": 1, "bbox": 2, "centerness": 1}[name]
        official = sum(case.expected["losses"][f"loss_{name}"])
        assert term.weight == weight
        assert term.value.item() * weight == pytest.approx(official, rel=1e-6), name
    total = total_loss(output.losses)
    assert total.item() == pytest.approx(case.expected["total"], rel=1e-6)
    total.backward()
    case.gradients(head, rename)


@pytest.mark.parametrize("counts", [(3, 1), (0, 2), (0, 0)])
def test_every_parameter_gets_a_gradient(small_batch, counts) -> None:
    pyramid, batch = small_batch(counts)
    head = AtssHead(num_classes=5, channels=32, num_levels=3)
    output = head(pyramid, batch)
    total_loss(output.losses).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert output.losses["cls"].value > 0
    if sum(counts) == 0:
        assert output.losses["bbox"].value == 0
        assert output.losses["centerness"].value == 0
    for found in output.candidates:
        assert found.boxes.shape == (len(found), 4)
        assert found.features.shape == (len(found), 32)
        assert found.features.requires_grad
        assert not found.boxes.requires_grad


def test_padding_of_an_image_enters_no_loss(small_batch) -> None:
    pyramid, batch = small_batch((2, 2))
    head = AtssHead(num_classes=5, channels=32, num_levels=3)
    anchors = head.grid(pyramid, batch.images.padded_sizes)
    matched, predictions = head.assign(anchors, batch), head.predictions(pyramid)
    before = head.losses(predictions, anchors, matched, batch)
    changed = predictions.map(lambda value: value.detach().clone())
    for value in (changed.logits, changed.deltas, changed.centerness):
        value[~anchors.usable] += 3
    after = head.losses(changed, anchors, matched, batch)
    for name in before:
        torch.testing.assert_close(before[name].value, after[name].value)


def test_mixed_precision_measures_in_float32(small_batch) -> None:
    pyramid, batch = small_batch((3, 1))
    head = AtssHead(num_classes=5, channels=32, num_levels=3)
    exact = head(pyramid, batch).losses
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = head(pyramid, batch).losses
    for name, term in rough.items():
        assert term.value.dtype == torch.float32
        torch.testing.assert_close(term.value, exact[name].value, rtol=0.02, atol=0.02)


def test_starts_with_rare_objects() -> None:
    head = AtssHead(num_classes=5, channels=32, num_levels=3)
    torch.testing.assert_close(head.cls.bias.sigmoid(), torch.full((5,), 0.01))
    assert [tuple(scale.shape) for scale in head.scales] == [()] * 3
