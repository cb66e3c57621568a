import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from codetr.errors import UserError
from tools.bench.pictures import coco_pictures
from tools.bench.pipelines import PIPELINES, build_stages, run_stages
from tools.bench.report import read_json

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "bench.py"


@pytest.fixture(scope="module")
def pictures():
    with coco_pictures(None, 2) as made:
        yield made


@pytest.mark.parametrize("name", PIPELINES)
def test_both_pipelines_give_the_same_shapes(pictures, name: str) -> None:
    fixed = ("+augmentation.train.shorts=[480]", "+augmentation.train.crop_probability=0")
    overrides = (*pictures.overrides, *PIPELINES[name], *(fixed if name == "detr" else ()))
    sides = build_stages(tuple(o.removeprefix("+") for o in overrides))
    for index in range(2):
        ours, plain = (run_stages(sides[side], index, 0) for side in ("ours", "baseline"))
        assert ours.shape[-3:] == plain.shape[-3:]
        assert ours.dtype == plain.dtype == torch.float32


def test_both_pipelines_give_almost_the_same_pixels_and_boxes(pictures) -> None:
    """Where chance is out of the game; the two resize with different rounding."""
    lsj = ("augmentation.train.ratio=[0.5,0.5]", "augmentation.train.flip=0")
    sides = build_stages((*pictures.overrides, *PIPELINES["lsj_1024"], *lsj))
    for index in range(2):
        ours, plain = (sides[side].augment(index, 0, sides[side].decode(index)) for side in sides)
        torch.testing.assert_close(
            ours.targets.boxes, torch.from_numpy(plain.boxes).float(), atol=1e-3, rtol=0
        )
        difference = sides["ours"].convert(ours) - sides["baseline"].convert(plain)
        assert difference.abs().max() < 3 / 57  # grey levels over the standard deviation


def test_mixes_that_the_plain_pipeline_lacks_are_refused(pictures) -> None:
    with pytest.raises(UserError, match=r"augmentation\.mix=Mosaic: .*mix=null"):
        build_stages((*pictures.overrides, "augmentation=detr_mosaic"))


def test_copy_paste_of_both_pastes(pictures) -> None:
    """With all objects moved and none hidden for sure, the number of boxes says what was pasted."""
    sides = build_stages((*pictures.overrides, *PIPELINES["lsj_1024 and copy-paste"]))
    for side, count in (
        ("ours", lambda x: len(x.targets)),
        ("baseline", lambda x: len(x.boxes)),
    ):
        stages = sides[side]
        decoded = stages.decode(0)
        numbers = {count(stages.augment(0, turn, decoded)) for turn in range(6)}
        assert len(numbers) > 1
        assert max(numbers) > 0


def test_given_jpeg_files_are_used(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "a.jpg")
    with coco_pictures(tmp_path, 5) as made:
        dataset = build_stages((*made.overrides, *PIPELINES["detr"]))["ours"].dataset
        assert len(dataset) == 1
        assert dataset.source[0].size == (48, 64)
        assert 1 <= len(dataset.source[0].targets) <= 7
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(UserError, match="has no JPEG files"), coco_pictures(tmp_path, 5):
        pass


def test_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = ["--count=2", "--large=1", "--repeats=1", "--no-memory", "--rate=10", "--gpus=4"]
    path = tmp_path / "data.json"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "data", *given, "--json", str(path)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    *pipelines, workers, scaled = read_json(path).tables
    assert len(pipelines) == len(PIPELINES)
    for table in pipelines:
        assert list(table.rows) == ["ours", "baseline", "ours / baseline"]
        ours = table.rows["ours"]
        assert ours[4] == pytest.approx(1e3 / float(ours[3]))
    assert all(row[0] >= 1 for row in workers.rows.values())
    assert set(scaled.rows) == set(PIPELINES)
