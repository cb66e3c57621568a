"""A run of the first layout of the package (codetr.detectors, codetr.schemes ...) still loads.

``earlier_run/model.safetensors`` is the export of a tiny Co-DINO that was trained then, with its
configuration inside; ``predictions.json`` is what it found then in the image made here.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import get_class

import codetr
from codetr.checkpoints.aliases import RENAMED, current_name, current_names
from codetr.checkpoints.files import read_detector_file
from codetr.checkpoints.trusted import NAMES, build_trusted
from codetr.nms import SoftNms

FOLDER = Path(__file__).parent / "earlier_run"


def picture() -> np.ndarray:
    """The image, (96, 128, 3) uint8, made by a rule."""
    y, x, channel = np.meshgrid(np.arange(96), np.arange(128), np.arange(3), indexing="ij")
    return ((7 * y + 3 * x + 50 * channel) % 256).astype(np.uint8)


def test_it_finds_what_it_found_then() -> None:
    wanted = json.loads((FOLDER / "predictions.json").read_text())
    found = codetr.load(FOLDER / "model.safetensors").predict(picture())
    assert len(found) == wanted["number"]
    best = found.take(slice(len(wanted["scores"])))
    assert list(best.classes) == wanted["classes"]
    assert best.labels.tolist() == wanted["labels"]
    torch.testing.assert_close(best.scores, torch.tensor(wanted["scores"]), rtol=1e-4, atol=1e-6)
    boxes = torch.tensor(wanted["boxes_xyxy_px"])
    torch.testing.assert_close(best.boxes_xyxy_px, boxes, rtol=1e-4, atol=1e-2)


def test_the_record_names_present_classes() -> None:
    record = read_detector_file(FOLDER / "model.safetensors").record
    detector = record.config["model"]["detector"]
    assert detector["_target_"].startswith("codetr.models.detectors.")
    assert detector["head"]["_target_"].startswith("codetr.models.heads.")


@pytest.mark.parametrize(
    ("earlier", "present"),
    [
        ("codetr.necks.ChannelMapper", "codetr.models.necks.ChannelMapper"),
        ("codetr.schemes.mixed.Branch", "codetr.supervision.schemes.mixed.Branch"),
        ("codetr.models.necks.ChannelMapper", "codetr.models.necks.ChannelMapper"),
        ("codetr.evaluation.SoftNms", "codetr.nms.SoftNms"),
        ("codetr.aux_heads.detections.ClasswiseNms", "codetr.nms.ClasswiseNms"),
        ("codetr.supervision.aux_heads.soft_nms.ClasswiseSoftNms", "codetr.nms.ClasswiseNms"),
        (
            "codetr.supervision.aux_heads.adapter.SingleScaleAdapter",
            "codetr.supervision.aux_heads.layers.SingleScaleAdapter",
        ),
        (
            "codetr.aux_heads.coder.DeltaCoder",
            "codetr.supervision.aux_heads.anchors.DeltaCoder",
        ),
        (
            "codetr.aux_heads.voting.VotedSelection",
            "codetr.supervision.aux_heads.selection.VotedSelection",
        ),
        (
            "codetr.aux_heads.box_head.SharedFcBoxHead",
            "codetr.supervision.aux_heads.roi_heads.SharedFcBoxHead",
        ),
        (
            "codetr.supervision.aux_heads.mask_head.FcnMaskHead",
            "codetr.supervision.aux_heads.roi_heads.FcnMaskHead",
        ),
        ("codetr.detectors.DeformableDetr", "codetr.models.detectors.Detr"),
        ("codetr.models.detectors.DeformableDetr", "codetr.models.detectors.Detr"),
        ("torch.nn.LayerNorm", "torch.nn.LayerNorm"),
        ("codetrx.necks.Neck", "codetrx.necks.Neck"),
        ({"no": "name"}, {"no": "name"}),
    ],
)
def test_only_moved_names_change(earlier: object, present: object) -> None:
    assert current_name(earlier) == present


@pytest.mark.parametrize("present", RENAMED.values())
def test_renamed_classes_may_be_built(present: str) -> None:
    assert present in NAMES
    assert get_class(present).__name__ == present.rpartition(".")[2]


def test_a_head_of_the_first_layout_builds_with_its_suppression() -> None:
    earlier = {
        "_target_": "codetr.aux_heads.atss.AtssHead",
        "num_classes": 3,
        "channels": 32,
        "num_levels": 2,
        "selection": {
            "_target_": "codetr.aux_heads.detections.DenseSelection",
            "threshold": 0.05,
            "nms": {
                "_target_": "codetr.aux_heads.soft_nms.ClasswiseSoftNms",
                "iou": 0.6,
                "limit": 100,
                "decay": {
                    "_target_": "codetr.evaluation.SoftNms",
                    "_partial_": True,
                    "min_score": 1e-3,
                },
            },
        },
    }
    head = build_trusted(current_names(earlier), "earlier.ckpt")
    assert head.selection.threshold == 0.05
    assert head.selection.nms.decay(head.selection.nms.iou) == SoftNms(0.6, 1e-3)
