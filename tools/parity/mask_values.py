"""Quantities of the region head's masks by official name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from codetr.boxes import at_least_float32
from codetr.masks import probability
from codetr.models.ops.roi_pool import roi_levels, with_image
from codetr.structures import Detections, ImageInfo, Pyramid
from codetr.supervision.aux_heads.matched import true_boxes
from codetr.supervision.mask_targets import mask_shares, mask_targets, true_masks
from codetr.training.branches import in_original
from tools.parity.case import Case
from tools.parity.recorded import Recorded
from tools.parity.region_values import with_masks
from tools.parity.values import Values, detections


def has_original_sizes(recorded: Recorded) -> bool:
    """Whether the recorded run mapped detections back to the original images."""
    return "ori_shapes" in {**recorded.info, **_evaluation(recorded)}


def original_infos(recorded: Recorded, infos: Sequence[ImageInfo]) -> tuple[ImageInfo, ...]:
    """``infos`` with the original sizes and scale factors of the recorded run."""
    said = {**recorded.info, **_evaluation(recorded)}
    return tuple(
        replace(info, original_size=(height, width), scale=(factor[0], factor[1]))
        for info, (height, width), factor in zip(
            infos, said["ori_shapes"], said["scale_factor_f32"], strict=True
        )
    )


def _evaluation(recorded: Recorded) -> dict[str, Any]:
    """The evaluation in info.json, which is an object, or a list with one object per image."""
    said = recorded.info.get("eval", {})
    if isinstance(said, dict):
        return said
    return {name: [image[name] for image in said] for name in said[0]} if said else {}


def evaluated_masks(
    case: Case,
    head: Any,
    pyramid: Pyramid,
    found: tuple[Detections, ...],
    main: Sequence[Detections],
) -> Values:
    """Masks of the head's own detections ``found``, of the query head's ``main``, of the true boxes
    and of any recorded regions. Boxes are in pixels of the network's input.
    """
    originals = original_infos(case.recorded, case.batch.infos)
    rescaled = in_original(found, originals)
    values = detections("roi_rescaled_det{}", rescaled)
    for b, (one, whole, info) in enumerate(zip(found, rescaled, case.batch.infos, strict=True)):
        boxes = [o.boxes_xyxy_px if o is one else o.boxes_xyxy_px[:0] for o in found]
        features = head.pool(pyramid, boxes, head.mask_head.roi_size)
        logits = head.mask_head(features, one.labels)
        name = f"roi_mask{b}"
        values[f"{name}_feats"], values[f"{name}_logits"] = features, logits
        values[f"{name}_logits_mean"] = logits.mean(dim=(1, 2))
        values[f"{name}_logits_first8"] = logits[:8]
        values[f"roi_rescaled_mask{b}_logits_first8"] = logits[:8]
        values |= _bitmaps(name, one.bitmaps(info.original_size))
        values |= _bitmaps(f"roi_rescaled_mask{b}", whole.bitmaps(originals[b].original_size))
        values |= _one_pasted(case, name, one)
    features = head.pool(pyramid, [one.boxes_xyxy_px for one in main], head.mask_head.roi_size)
    logits = head.mask_head(features, torch.cat([one.labels for one in main]))
    own = logits.split([len(one) for one in main])
    for b, one in enumerate(head.with_masks(pyramid, tuple(main))):
        values[f"query_mask{b}_logits"] = own[b]
        values |= _bitmaps(f"query_mask{b}", one.bitmaps(case.batch.infos[b].original_size))
    truth = true_boxes(case.batch.targets)
    return values | _of_regions("gt_", head, pyramid, truth) | _wide(case, head, pyramid)


def _bitmaps(name: str, bits: Tensor) -> Values:
    return {f"{name}_bits": bits, f"{name}_area": bits.sum(dim=(1, 2))}


def _one_pasted(case: Case, name: str, found: Detections) -> Values:
    """The probabilities of the recorded mask in the recorded window."""
    arrays = case.recorded.arrays
    if f"eval/{name}_paste_index" not in arrays:
        return {}
    (index,) = arrays[f"eval/{name}_paste_index"].tolist()
    top, bottom, left, right = arrays[f"eval/{name}_paste_window"].tolist()
    assert found.cells is not None
    cells, box = found.cells.probabilities[index], found.boxes_xyxy_px[index]
    return {f"{name}_paste_prob": probability(cells, box, (top, bottom, left, right))}


def _of_regions(name: str, head: Any, pyramid: Pyramid, boxes: Sequence[Tensor]) -> Values:
    features, part = head.pool(pyramid, boxes, head.mask_head.roi_size), head.mask_head
    return {
        f"{name}mask_feats": features,
        f"{name}mask_pred": part.classify(part.upsample(part.convs(features)).relu()),
        f"{name}mask_level": roi_levels(
            torch.cat(list(boxes)), pyramid.strides[0], head.num_levels - 1
        ),
    }


def _wide(case: Case, head: Any, pyramid: Pyramid) -> Values:
    stored = case.recorded.arrays.get("eval/wide_rois")
    if stored is None:
        return {}
    rois = torch.from_numpy(stored).to(pyramid.maps[0].dtype)
    boxes = [rois[rois[:, 0] == b, 1:] for b in range(len(case.batch))]
    as_recorded = rois[:, 0].argsort(stable=True).argsort()
    found = _of_regions("wide_", head, pyramid, boxes)
    found |= {"wide_rois": with_image(boxes), "wide_level": found["wide_mask_level"]}
    return {name: value[as_recorded] for name, value in found.items()}


def trained_masks(case: Case, head: Any, pyramid: Pyramid, regions: Sequence[Any]) -> Values:
    """Predictions and targets of the positive regions of a training step."""
    targets = case.batch.targets
    boxes, numbers, values = with_masks(regions)
    values |= _of_regions("", head, pyramid, boxes)
    own, size = (
        head.mask_head(values["mask_feats"], values["mask_labels"]),
        head.mask_head.mask_size,
    )
    levels = torch.bincount(values["mask_level"], minlength=head.num_levels - 1)
    wanted = mask_targets(targets, boxes, numbers, [size])[0] > 0
    shares = [
        mask_shares(true_masks(target), box, row, [size])[0]
        for target, box, row in zip(targets, boxes, numbers, strict=True)
    ]
    return values | {
        "counts/mask_pos_per_level": levels,
        "mask_pred_own": at_least_float32(own),
        "mask_targets": wanted,
        "counts/mask_target_ones": wanted.sum(),
        "mask_targets_soft": torch.cat(shares),
    }
