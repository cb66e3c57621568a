"""Records of whole detectors with masks: all that a record of the branch alone holds is compared
there too, and the official state dict is the detector's.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tiny import batch, build, composed

from codetr.checkpoints.experiment import build_empty
from codetr.checkpoints.official import convert_official
from codetr.checkpoints.renaming import Conversion
from codetr.structures import Batch, ImageInfo
from tools.parity.case import Case
from tools.parity.co_detr import co_detr_loss, evaluation_values, training_values
from tools.parity.noise import as_recorded
from tools.parity.step import entered, training_step

ALONE = Path(__file__).parents[1] / "golden" / "heads" / "refine_mask"
WHOLE = {
    "co_dino_5scale_vit_large_coco_instance": ("co_dino_5scale_vit_large_coco", 80),
    "co_dino_5scale_lsj_vit_large_lvis_instance": ("co_dino_5scale_lsj_vit_large_lvis", 1203),
}
POSTPROCESS = {"_target_": "codetr.evaluation.Postprocess", "max_detections": 20}
FACTORS = [[1.5, 1.25], [0.5, 0.75]]
ORIGINALS = [[40, 50], [70, 80]]
LAYOUTS = {
    "by name": {"eval": {"ori_shapes": ORIGINALS, "scale_factor_f32": [f * 2 for f in FACTORS]}},
    "by image": {
        "ori_shapes": ORIGINALS,
        "eval": [{"scale_factor_f32": f * 2} for f in FACTORS],
    },
}


def tiny_case() -> Case:
    """In float64, with a record that holds nothing."""
    torch.manual_seed(0)
    detector, schemes = build(
        ("one_to_one", "denoising", "collaborative"), ("rcnn", "atss"), "masks=refine_small"
    )
    data = batch((3, 2))
    infos = tuple(
        ImageInfo(image_id=b, original_size=(height, width), scale=(1.0, 1.0))
        for b, (height, width) in enumerate(data.images.sizes.tolist())
    )
    images = replace(data.images, pixels=data.images.pixels.double())
    targets = tuple(
        replace(t, boxes=t.boxes.double(), weights=t.weights.double(), size=t.size.double())
        for t in data.targets
    )
    return Case(
        recorded=record({}, {}),
        cfg=OmegaConf.create({"evaluation": {"postprocess": POSTPROCESS}}),
        detector=detector.double(),
        schemes=schemes.double(),
        conversion=Conversion(state={}, used={}, dropped=(), unused=()),
        batch=Batch(images=images, targets=targets, infos=infos),
    )


def record(info: dict, arrays: dict) -> Any:
    """Stands for a folder of recorded numbers."""
    return SimpleNamespace(info=info, arrays=arrays, packed={}, losses={}, of_co_detr=True)


def test_everything_that_the_branch_alone_records_is_compared_on_whole_detectors() -> None:
    case = tiny_case()
    recorded = json.loads((ALONE / "losses.json").read_text())
    names = set(json.loads((ALONE / "stats.json").read_text()))
    values = evaluation_values(case)
    with entered(as_recorded(case)):
        step = training_step(case)
        values |= training_values(case, step)
    assert {n for n in names if n.startswith(("train/", "eval/"))} <= set(values)
    assert set(recorded["losses"]) <= {co_detr_loss(n, len(step.main.layers)) for n in step.losses}
    counted = {*recorded["counts"], "stage_losses_unweighted"}
    assert {f"counts/{name}" for name in counted} <= set(values)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("original", [False, True])
def test_masks_and_boxes_are_those_of_the_recorded_frame(layout: dict, original: bool) -> None:
    """Masks of the size of the network's input or of the original image; boxes in either."""
    case = tiny_case()
    plain = evaluation_values(case)
    boxes = plain["eval/det1_boxes_scores"]
    factor = boxes.new_tensor([*FACTORS[1] * 2, 1.0])
    arrays = {
        "eval/mask0_bits": np.zeros((20, *(ORIGINALS[0] if original else (64, 64)))),
        "eval/det1_boxes_scores": (boxes / factor if original else boxes).numpy(),
    }
    found = evaluation_values(replace(case, recorded=record(layout, arrays)))
    assert found["eval/mask1_bits"].shape[1:] == ((70, 80) if original else (64, 48))
    torch.testing.assert_close(
        found["eval/det1_boxes_scores"], torch.from_numpy(arrays["eval/det1_boxes_scores"])
    )
    torch.testing.assert_close(found["eval/mask1_score"], plain["eval/mask1_score"])


@pytest.mark.parametrize("name", WHOLE)
def test_official_entries_are_those_that_masks_add(name: str) -> None:
    """Beside the model without masks, which stays as it is."""
    plain, classes = WHOLE[name]
    entries = json.loads((ALONE / "keys.json").read_text())["entries"]
    official = {
        key: torch.empty([classes if n == 80 else n for n in shape], device="meta")
        for key, shape, *_ in entries
    }
    conversion = convert_official(official)
    assert not conversion.unused
    with_masks, without = (
        build_empty(composed([f"experiment={one}", "data.root=x", f"num_classes={classes}"]))
        for one in (name, plain)
    )
    shapes = {key: value.shape for key, value in with_masks.state_dict().items()}
    rest = {key: value.shape for key, value in without.state_dict().items()}
    added = {key: shape for key, shape in shapes.items() if key not in rest}
    assert {key: value.shape for key, value in conversion.state.items()} == added
    assert {key: shapes[key] for key in rest} == rest
    assert [key for key in shapes if key in rest] == list(rest)
    if classes == 80:
        assert sum(map(math.prod, added.values())) == 18_659_262
