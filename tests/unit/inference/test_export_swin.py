"""A detector on a Swin Transformer, exported with free batch and image sizes."""

from pathlib import Path

import pytest
from tiny_checkpoint import save_tiny

from codetr.checkpoints.files import read_detector_file
from codetr.inference.export import Format, export
from codetr.inference.export_check import as_cases

SWIN = (
    "model/backbone=swin_tiny",
    "model.backbone.pretrained=false",
    "model.backbone.embed_dim=16",
    "model.backbone.depths=[1,2]",
    "model.backbone.heads=[1,2]",
    "model.backbone.window=4",
    "model.backbone.out_indices=[0,1]",
    "model.levels=3",
    "augmentation=none",
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_sizes_that_windows_divide_and_others(kind: Format, tmp_path: Path) -> None:
    """Recorded where neither side is a whole number of windows; at 128 both are, at both stages."""
    checkpoint = save_tiny(tmp_path / "swin.safetensors", *SWIN)
    cases = as_cases([[2, 131, 165], [1, 96, 200], [3, 200, 97], [1, 128, 128]])
    content, path = read_detector_file(checkpoint), tmp_path / f"swin.{kind}"
    done = export(content, str(checkpoint), path, kind, cases=cases, top_k=20)
    assert len(done.differences) == len(cases)
    assert max(found.distances.max() for found in done.differences) < 1e-4
