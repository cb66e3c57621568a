"""Present names of classes that were renamed since a file's configuration was written."""

from __future__ import annotations

from typing import Any

MOVED = {
    **{
        f"codetr.{part}.": f"codetr.models.{part}."
        for part in ("ops", "layers", "backbones", "necks", "transformers", "heads", "detectors")
    },
    **{
        f"codetr.{part}.": f"codetr.supervision.{part}."
        for part in ("assigners", "criteria", "aux_heads", "schemes")
    },
}
"""Present prefixes of names, by their prefixes before version 0.1.0."""

RENAMED = {
    "codetr.models.detectors.DeformableDetr": "codetr.models.detectors.Detr",
    "codetr.evaluation.SoftNms": "codetr.nms.SoftNms",
    "codetr.inference.merge.Nms": "codetr.nms.Nms",
    "codetr.supervision.aux_heads.detections.ClasswiseNms": "codetr.nms.ClasswiseNms",
    "codetr.supervision.aux_heads.detections.DenseSelection": (
        "codetr.supervision.aux_heads.selection.DenseSelection"
    ),
    "codetr.supervision.aux_heads.voting.VotedSelection": (
        "codetr.supervision.aux_heads.selection.VotedSelection"
    ),
    "codetr.supervision.aux_heads.adapter.SingleScaleAdapter": (
        "codetr.supervision.aux_heads.layers.SingleScaleAdapter"
    ),
    "codetr.supervision.aux_heads.coder.DeltaCoder": (
        "codetr.supervision.aux_heads.anchors.DeltaCoder"
    ),
    "codetr.supervision.aux_heads.soft_nms.ClasswiseSoftNms": "codetr.nms.ClasswiseNms",
    **{
        f"codetr.supervision.aux_heads.{file}.{name}": (
            f"codetr.supervision.aux_heads.roi_heads.{name}"
        )
        for file, name in (
            ("box_head", "ConvFcBoxHead"),
            ("box_head", "SharedFcBoxHead"),
            ("mask_head", "FcnMaskHead"),
        )
    },
}
"""Present names by earlier ones, to be looked up after ``MOVED`` has been applied."""


def current_names(config: Any) -> Any:
    """A copy of ``config`` (plain values) in which every ``_target_`` has its present name."""
    if isinstance(config, dict):
        return {
            key: current_name(value) if key == "_target_" else current_names(value)
            for key, value in config.items()
        }
    return [current_names(value) for value in config] if isinstance(config, list) else config


def current_name(target: Any) -> Any:
    """The present name of a class; names that never changed are returned as they are."""
    if not isinstance(target, str):
        return target
    old = next((name for name in MOVED if target.startswith(name)), "")
    moved = MOVED.get(old, "") + target.removeprefix(old)
    return RENAMED.get(moved, moved)
