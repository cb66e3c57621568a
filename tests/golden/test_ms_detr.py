"""MS-DETR against a recorded run of the official code, and the rule that made its weights."""

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codetr.errors import UserError
from codetr.supervision.assigners import TopKAssigner
from tools.parity import rules_detr
from tools.parity.check import check
from tools.parity.components import check_matcher
from tools.parity.inputs import make_batch
from tools.parity.recorded import Recorded

OVERRIDES = [
    {"pattern": r"refpoint_embed\.weight", "offset": [0.0, 0.0, -1.0, -1.0], "scale": 1.5},
    {"pattern": r"refpoint.*", "gain": 6.0},
    {"pattern": r"bbox_embed\.\d\.layers\.2\.weight", "gain": 0.5},
]


@pytest.mark.golden
def test_ours_equals_the_recorded_run(shared: Path) -> None:
    report = check(shared / "golden" / "ms_detr_r50")
    assert not [row for row in report.rows if not row.ok]
    assert not report.untouched
    assert report.ok
    assert "ms_detr_r50_300q_1x_coco" in report.title
    quantities = {row.quantity for row in report.rows}
    assert {"match_o2m_l5", "loss_giou_4_o2m", "grad (all)", "post_boxes_1"} <= quantities


def test_an_experiment_that_no_records_are_known_of_is_named(tmp_path: Path) -> None:
    folder = folder_without(tmp_path / "other")
    (folder / "info.json").write_text(json.dumps({"experiment": "co_dino_5scale_r50_1x_coco"}))
    with pytest.raises(UserError, match=r"experiment co_dino.*begins with ms_detr"):
        check(folder)


@pytest.mark.golden
def test_the_matcher_check_notices_another_rule(shared: Path) -> None:
    folder = shared / "golden" / "ms_detr_r50"
    assert all(row.ok for row in check_matcher(folder, TopKAssigner()))
    for other in (
        TopKAssigner(k=5),
        TopKAssigner(threshold=0.45),
        TopKAssigner(overlap=0.6, score=0.4),
    ):
        assert not all(row.ok for row in check_matcher(folder, other))


@pytest.mark.golden
@pytest.mark.parametrize(
    "case", ["ms_detr_r50", "teach_detr_h_deformable", "dab_detr_r50_dc5", "vidt_swin_small"]
)
def test_weight_rule_equals_the_reference(case: str, shared: Path) -> None:
    reference = runpy.run_path(str(shared / "golden" / "weights_detr.py"))
    keys = json.loads((shared / "golden" / case / "keys.json").read_text())["keys"]
    for key, shape in keys:
        if np.prod(shape) <= 70_000:
            ours = rules_detr.make_tensor(key, shape)
            assert np.array_equal(ours, reference["make_tensor"](key, shape)), key


@pytest.mark.golden
def test_input_rule_equals_the_reference(shared: Path) -> None:
    reference = runpy.run_path(str(shared / "golden" / "weights_detr.py"))
    ours = rules_detr.make_inputs(5, [(70, 50), (33, 90)], [4, 0], 7)
    pixels, padding, boxes, labels, relative = reference["make_inputs"](
        5, [(70, 50), (33, 90)], [4, 0], 7
    )
    assert np.array_equal(ours.pixels, pixels)
    assert np.array_equal(make_batch(ours).images.padding, padding)
    theirs = (*boxes, *labels, *relative)
    for mine, other in zip((*ours.boxes, *ours.labels, *ours.relative), theirs, strict=True):
        assert np.array_equal(mine, other)


def test_the_first_override_that_matches_the_whole_name_replaces_the_rule() -> None:
    unit = rules_detr.make_tensor("refpoint_embed.weight", (3, 4), [{**OVERRIDES[0], "scale": 0.0}])
    assert np.array_equal(unit, np.tile(np.float32([0, 0, -1, -1]), (3, 1)))
    plain = rules_detr.make_tensor("a.refpoint.weight", (3, 4))
    assert np.array_equal(rules_detr.make_tensor("a.refpoint.weight", (3, 4), OVERRIDES), plain)
    gained = rules_detr.make_tensor("refpoint.b", (3, 4), OVERRIDES)
    bare = rules_detr.make_tensor("refpoint.b", (3, 4))
    np.testing.assert_allclose(gained, 6 * bare, rtol=1e-6)
    box = "bbox_embed.3.layers.2.weight"
    np.testing.assert_allclose(
        rules_detr.make_tensor(box, (4, 8), OVERRIDES) * 0.6,
        rules_detr.make_tensor(box, (4, 8)),
        rtol=1e-6,
    )


def folder_without(root: Path, **missing: Any) -> Path:
    """A folder whose keys.json lacks what ``missing`` says."""
    root.mkdir()
    keys = {"keys": [], "seed": 1, "sizes": [[8, 8]], "num_gts": [1]}
    (root / "info.json").write_text(json.dumps({"experiment": "ms_detr_r50_300q_1x_coco"}))
    kept = {key: value for key, value in keys.items() if key not in missing}
    (root / "keys.json").write_text(json.dumps(kept))
    np.savez(root / "io.npz", x=np.zeros(1))
    return root


def test_an_incomplete_folder_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    folder = folder_without(tmp_path / "seedless", seed=True)
    with pytest.raises(UserError, match=r"keys\.json has no seed"):
        Recorded.load(folder)
    (folder / "io.npz").unlink()
    shutil.copy(folder_without(tmp_path / "whole") / "keys.json", folder)
    with pytest.raises(UserError, match=r"has no io\.npz"):
        Recorded.load(folder)
