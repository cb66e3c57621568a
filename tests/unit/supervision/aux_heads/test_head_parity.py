"""The check of heads against recorded numbers; tests/golden/test_parity.py runs it on all."""

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

from codetr.errors import UserError
from tools.parity import rules
from tools.parity.check import check
from tools.parity.heads import check_head
from tools.parity.recorded import Recorded

RECORDED = Path(__file__).resolve().parents[3] / "golden" / "heads"


@pytest.mark.golden
def test_another_number_and_an_unknown_one_are_noticed(tmp_path: Path) -> None:
    """The copy lies alone under another name: nothing beside a folder is needed."""
    folder = shutil.copytree(RECORDED / "fcos", tmp_path / "b" / "one")
    for path in folder.iterdir():
        path.chmod(0o644)
    arrays = dict(np.load(folder / "io.npz"))
    arrays["out/ctr3"][5] += 1e-3
    arrays["assign1_pos_idx"][7] += 1
    arrays["assign0_pos_wisdom"] = np.zeros(3)
    np.savez(folder / "io.npz", **arrays)
    losses = json.loads((folder / "losses.json").read_text())
    losses["losses"]["loss_bbox"] *= 1 + 1e-5
    losses["grad_norms"]["bbox_head.0.scales.1.scale"] *= 1 + 1e-4
    (folder / "losses.json").write_text(json.dumps(losses))
    report = check(folder)
    assert {row.quantity for row in report.rows if not row.ok} == {
        "out/ctr3",
        "assign1_pos_idx",
        "loss_bbox",
        "grad bbox_head.0.scales.1.scale",
    }
    assert report.untouched == ("assign0_pos_wisdom",)


def test_an_unknown_head_is_named(tmp_path: Path) -> None:
    (tmp_path / "info.json").write_text('{"head_config": {"type": "YOLOHead"}}')
    (tmp_path / "keys.json").write_text('{"entries": []}')
    np.savez(tmp_path / "io.npz")
    with pytest.raises(UserError, match="type is YOLOHead"):
        check_head(Recorded.load(tmp_path))
    with pytest.raises(UserError, match=r"has no info\.json"):
        Recorded.load(tmp_path / "nothing")


def test_input_rule_equals_the_reference(shared: Path) -> None:
    reference = runpy.run_path(str(shared / "golden" / "heads" / "inputs.py"))
    assert reference["STRIDES"] == rules.STRIDES
    ours = rules.make_features([5, 71], (70, 90))
    theirs = reference["make_features"]([5, 71], (70, 90))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype
        assert np.array_equal(mine, other)
    for keep in ([0, 7, 3, 59], []):
        for mine, other in zip(
            rules.make_boxes(9, (70, 90), keep),
            reference["make_gt"](9, (70, 90), keep),
            strict=True,
        ):
            assert mine.dtype == other.dtype
            assert mine.shape == other.shape
            assert np.array_equal(mine, other)
