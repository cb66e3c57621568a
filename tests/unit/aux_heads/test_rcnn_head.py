"""RPN and region head against the official numbers, and on batches with few or no boxes."""

import numpy as np
import pytest
import torch

from codetr.assigners.sampling import RandomSampler
from codetr.aux_heads.box_head import SharedFcBoxHead
from codetr.aux_heads.coder import DeltaCoder
from codetr.aux_heads.matched import boxes_xyxy_px
from codetr.aux_heads.rcnn import RcnnHead
from codetr.aux_heads.rpn import Rpn
from codetr.boxes import xyxy_to_cxcywh
from codetr.structures import total_loss


def rename(key: str) -> str:
    for old, new in (
        ("rpn_head.rpn_", "rpn."),
        ("roi_head.0.bbox_head.", "box_head."),
        ("shared_fcs", "fcs"),
        ("fc_", ""),
    ):
        key = key.replace(old, new)
    return key


def fixed_permutation(n: int) -> torch.Tensor:
    """What stood in for randomness when the official numbers were made."""
    keys = (np.arange(1, n + 1, dtype=np.uint64) * np.uint64(2654435761)) % np.uint64(2**32)
    return torch.from_numpy(np.argsort(keys, kind="stable"))


@pytest.mark.golden
def test_rcnn_equals_the_official_heads(golden, monkeypatch) -> None:
    monkeypatch.setattr(torch, "randperm", fixed_permutation)
    case = golden("rcnn")
    head = RcnnHead(num_classes=80, channels=256, num_levels=6).double()
    head.load_state_dict(case.weights(rename))
    pyramid, batch = case.pyramid, case.batch
    sizes = batch.images.sizes

    first = head.rpn(pyramid, batch.images)
    monkeypatch.setattr(head.rpn, "forward", lambda *_: first)  # slow parts run once
    second = []
    head.box_head.register_forward_hook(lambda _, inputs, outputs: second.extend(inputs + outputs))
    with torch.no_grad():
        cells = [h * w * 9 for h, w in pyramid.shapes]
        for level, (shape, logits, deltas) in enumerate(
            zip(
                pyramid.shapes,
                first.logits.split(cells, dim=1),
                first.deltas.split(cells, dim=1),
                strict=True,
            )
        ):
            for name, value in (("cls", logits), ("reg", deltas)):
                maps = value.reshape(2, *shape, -1).permute(0, 3, 1, 2)
                case.close(f"out/rpn_{name}{level}", maps)
        proposals = {
            "test": head.rpn.proposals(first, sizes, head.rpn.inference_selection),
            "train": head.rpn.proposals(first, sizes, head.rpn.training_selection),
        }
        for kind, found in proposals.items():
            for image, one in enumerate(found):
                stored = torch.from_numpy(case.io[f"{kind}{image}_proposals"]).double()
                torch.testing.assert_close(one.boxes, stored[:, :4], atol=1e-3, rtol=1e-5)
                torch.testing.assert_close(one.scores, stored[:, 4], atol=1e-5, rtol=1e-5)
        for image, found in enumerate(head.predict(pyramid, batch.images)):
            stored = torch.from_numpy(case.io[f"det{image}_boxes_scores"]).double()
            torch.testing.assert_close(found.boxes_xyxy_px, stored[:, :4], atol=1e-3, rtol=1e-5)
            torch.testing.assert_close(found.scores, stored[:, 4], atol=1e-5, rtol=1e-5)
            case.equal(f"det{image}_labels", found.labels)
        for image, target in enumerate(batch.targets):
            truth = boxes_xyxy_px(target.boxes, target)
            _, chosen = head.rpn.sample(first.anchors, image, truth)
            case.equal(f"rpn{image}_positive_anchor_idx", chosen.positive)
            case.equal(f"rpn{image}_sampled_anchor_idx", chosen.index.sort().values)
        train = [p.boxes for p in proposals["train"]]
        regions = head.sample(train, batch.targets)
        for image, (found, target) in enumerate(zip(regions, batch.targets, strict=True)):
            pool = torch.cat([boxes_xyxy_px(target.boxes, target), train[image]])
            chosen = np.concatenate([case.io[f"roi{image}_{k}_idx"] for k in ("pos", "neg")])
            assert torch.equal(found.boxes, pool[torch.from_numpy(chosen)])
            positive = found.matched.labels < 80
            gt = torch.from_numpy(case.io[f"roi{image}_pos_gt"])
            assert torch.equal(found.matched.boxes[positive], target.boxes[gt])
            assert torch.equal(found.matched.labels[positive], target.labels[gt])

    second.clear()
    output = head(pyramid, batch)
    for name, value in zip(("feats", "cls_score", "bbox_pred"), second, strict=True):
        case.close(f"roi_{name}", value)
    for image, (found, target) in enumerate(zip(output.candidates, batch.targets, strict=True)):
        whwh = target.size_whwh
        for name, value in (("coords", found.boxes), ("targets", found.targets)):
            stored = torch.from_numpy(case.io[f"query/{name}"][image]).double()
            torch.testing.assert_close(
                value * whwh, xyxy_to_cxcywh(stored), atol=1e-3, rtol=1e-5, msg=name.__add__
            )
        assert found.labels.tolist() == case.io["query/labels"][image].tolist()
    case.close("query/mean_feats", torch.stack([c.features for c in output.candidates]))

    for name, term in output.losses.items():
        weight = {"rpn_cls": 1, "rpn_bbox": 1, "cls": 1, "bbox": 10}[name]
        official = np.sum(case.expected["losses"][f"loss_{name}"])
        assert term.weight == weight
        assert term.value.item() * weight == pytest.approx(official, rel=1e-6), name
    total = total_loss(output.losses)
    assert total.item() == pytest.approx(case.expected["total"], rel=1e-6)
    total.backward()
    case.gradients(head, rename)


def small_head(**parts) -> RcnnHead:
    return RcnnHead(
        num_classes=5,
        channels=32,
        num_levels=3,
        rpn=Rpn(channels=32, sampler=RandomSampler(size=32, positive_share=0.5)),
        sampler=RandomSampler(size=24, positive_share=0.25),
        **{"box_head": SharedFcBoxHead(num_classes=5, channels=32, fc_dim=16)} | parts,
    )


@pytest.mark.parametrize("counts", [(3, 1), (0, 2), (0, 0)])
def test_every_parameter_gets_a_gradient(small_batch, counts) -> None:
    pyramid, batch = small_batch(counts)
    head = small_head()
    output = head(pyramid, batch)
    total_loss(output.losses).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert all(features.grad is not None for features in pyramid.maps)
    if sum(counts) == 0:
        assert output.losses["rpn_bbox"].value == 0
        assert output.losses["bbox"].value == 0
    for found, count in zip(output.candidates, counts, strict=True):
        positive = found.labels < 5
        assert bool(positive.any()) == (count > 0)
        assert not found.targets[~positive].any()
        assert found.features.requires_grad
        assert not found.boxes.requires_grad


def test_no_region_at_all_still_reaches_every_parameter(small_batch) -> None:
    """With no boxes and no proposals (all clipped away) the second stage sees nothing."""
    pyramid, batch = small_batch((0, 0))
    head = small_head()
    nothing = [torch.zeros(0, 4), torch.zeros(0, 4)]
    regions = head.sample(nothing, batch.targets)
    assert [len(r) for r in regions] == [0, 0]
    losses = head.losses(
        *head.classify(head.pool(pyramid, [r.boxes for r in regions])), regions, batch.targets
    )
    total_loss(losses).backward()
    for name, parameter in head.box_head.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name
    assert [len(found) for found in head.detect(pyramid, batch.images, nothing)] == [0, 0]


def test_candidates_are_as_many_as_the_smallest_image_has(small_batch, monkeypatch) -> None:
    pyramid, batch = small_batch((3, 2))
    head = small_head()
    whole = head.sample
    monkeypatch.setattr(
        head, "sample", lambda boxes, targets: whole([boxes[0], boxes[1][:4]], targets)
    )
    output = head(pyramid, batch)
    assert [len(found) for found in output.candidates] == [6, 6]


def test_one_regression_for_all_classes_equals_equal_ones_per_class(small_batch) -> None:
    pyramid, batch = small_batch((3, 2))

    class Agnostic(SharedFcBoxHead):
        def forward(self, features):
            logits, deltas = super().forward(features)
            return logits, deltas[:, :1]

    class Repeated(SharedFcBoxHead):
        def forward(self, features):
            logits, deltas = super().forward(features)
            return logits, deltas[:, :1].expand(-1, 5, -1)

    parts = [kind(num_classes=5, channels=32, fc_dim=16) for kind in (Agnostic, Repeated)]
    parts[1].load_state_dict(parts[0].state_dict())
    shared_rpn = Rpn(channels=32)
    values, found = [], []
    for part in parts:
        head = RcnnHead(num_classes=5, channels=32, num_levels=3, rpn=shared_rpn, box_head=part)
        torch.manual_seed(1)
        values.append(total_loss(head(pyramid, batch).losses))
        with torch.no_grad():
            found.append(head.predict(pyramid, batch.images)[0])
    torch.testing.assert_close(*values)
    torch.testing.assert_close(found[0].boxes_xyxy_px, found[1].boxes_xyxy_px)


def test_mixed_precision_measures_in_float32(small_batch) -> None:
    pyramid, batch = small_batch((3, 1))
    head = small_head()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = head(pyramid, batch)
        detections = head.predict(pyramid, batch.images)
    total_loss(output.losses).backward()
    for term in output.losses.values():
        assert term.value.dtype == torch.float32
        assert term.value.isfinite()
    assert all(found.boxes_xyxy_px.dtype == torch.float32 for found in detections)


def test_detections_lie_in_the_image(small_batch) -> None:
    pyramid, batch = small_batch((1, 1))
    head = small_head(coder=DeltaCoder(stds=(1, 1, 1, 1)))
    torch.nn.init.normal_(head.box_head.reg.weight)
    with torch.no_grad():
        found = head.predict(pyramid, batch.images)
    for one, (height, width) in zip(found, batch.images.sizes.tolist(), strict=True):
        assert len(one) == 100
        assert one.scores.diff().le(0).all()
        assert one.boxes_xyxy_px.min() >= 0
        assert one.boxes_xyxy_px[:, 2].max() <= width
        assert one.boxes_xyxy_px[:, 3].max() <= height


def test_a_single_level_is_refused() -> None:
    with pytest.raises(ValueError, match="2 or more levels"):
        RcnnHead(num_classes=5, channels=32, num_levels=1)
