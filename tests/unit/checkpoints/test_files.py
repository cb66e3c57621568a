from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from codetr.checkpoints.files import (
    DetectorFile,
    RunRecord,
    export_detector,
    read_detector_file,
    write_detector_file,
)
from codetr.checkpoints.transfer import load_weights
from codetr.classes import ClassList
from codetr.errors import UserError

CLASSES = ClassList(names=("cat", "dog"), category_ids=(3, 17))
RECORD = RunRecord(
    classes=CLASSES, preprocessing={"mean": [1.0, 2.0, 3.0]}, config={"model": {"dim": 8}}
)


def detector() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A run's .ckpt with a scheme's weights beside the detector's."""
    state = {f"detector.{name}": value for name, value in detector().state_dict().items()}
    state["schemes.denoising.embed"] = torch.ones(2)
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": state, RunRecord.KEY: RECORD.as_dict(), "epoch": 3}, path)
    return path


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_detector_comes_back_with_its_record(checkpoint: Path, kind: str) -> None:
    path = checkpoint
    if kind == "safetensors":
        path = checkpoint.with_name("model.safetensors")
        export_detector(checkpoint, path)
    expected = read_detector_file(checkpoint).weights
    other = detector()
    content = read_detector_file(path)
    assert content.record == RECORD
    assert set(content.schemes) == ({"denoising.embed"} if kind == "ckpt" else set())
    load_weights(content, str(path), other, CLASSES)
    assert set(expected) == set(other.state_dict())
    for name, value in other.state_dict().items():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("known", [True, False])
def test_records_that_say_whether_ids_are_known_still_load(checkpoint: Path, known: bool) -> None:
    assert "category_ids_known" not in RECORD.as_dict()
    content = torch.load(checkpoint, weights_only=True)
    content[RunRecord.KEY]["category_ids_known"] = known  # as earlier runs wrote it
    torch.save(content, checkpoint)
    assert read_detector_file(checkpoint).record == RECORD


def test_tied_weights_can_be_exported(tmp_path: Path) -> None:
    weight = torch.ones(2)
    content = DetectorFile(weights={"a": weight, "b": weight}, record=RECORD)
    write_detector_file(tmp_path / "m.safetensors", content)
    assert set(read_detector_file(tmp_path / "m.safetensors").weights) == {"a", "b"}


def test_schemes_can_lie_beside_the_detector(checkpoint: Path, tmp_path: Path) -> None:
    content = read_detector_file(checkpoint)
    write_detector_file(tmp_path / "m.safetensors", content)
    again = read_detector_file(tmp_path / "m.safetensors")
    assert again.record == content.record
    assert again.weights.keys() == content.weights.keys()
    assert torch.equal(again.schemes["denoising.embed"], torch.ones(2))
    assert "schemes.denoising.embed" in again.state
    assert "detector.0.weight" in again.state


def test_other_model_is_an_error_that_names_the_differences(checkpoint: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(3), nn.Linear(1, 1))
    with pytest.raises(UserError, match=r"2 missing \(2.weight.*other shape \(0.weight \(3, 2\)"):
        load_weights(read_detector_file(checkpoint), str(checkpoint), model, CLASSES)


class Evil:
    def __reduce__(self) -> tuple:
        return print, ("code ran",)


@pytest.mark.parametrize("case", ["missing", "ending", "cut", "foreign", "code", "plain", "junk"])
def test_unusable_file_is_one_line(
    checkpoint: Path, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / ("x.pt" if case == "ending" else "x.ckpt")
    if case in ("plain", "junk"):
        path = path.with_suffix(".safetensors")
    if case == "ending":
        path.write_bytes(b"")
    elif case == "cut":
        path.write_bytes(checkpoint.read_bytes()[:500])
    elif case == "foreign":
        torch.save({"state_dict": {}}, path)
    elif case == "code":
        torch.save({"state_dict": Evil()}, path)
    elif case == "plain":
        save_file({"a": torch.ones(1)}, path)
    elif case == "junk":
        path.write_bytes(b"junk")
    with pytest.raises(UserError, match=str(path)) as caught:
        read_detector_file(path)
    assert "\n" not in str(caught.value)
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "about",
    [
        "{",
        "[]",
        "3",
        '{"class_names": 3, "category_ids": [], "preprocessing": {}, "config": {}}',
        '{"class_names": [[]], "category_ids": [[]], "preprocessing": {}, "config": {}}',
    ],
)
def test_damaged_metadata_is_named(tmp_path: Path, about: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.zeros(1)}, path, metadata={RunRecord.KEY: about})
    with pytest.raises(
        UserError, match=r"a\.safetensors: .* export it again, or download the file again"
    ):
        read_detector_file(path)
