"""Official checkpoints in the true commands: converted, trained on, evaluated, refused."""

import json
import os
import runpy
import sys
from pathlib import Path

import pytest
import torch
from commands import ROOT, Command
from hydra import compose, initialize_config_dir
from tiny_official import TINY, save_official, tiny_model, to_official

from codetr.checkpoints.files import read_detector_file
from codetr.conf_folder import conf_folder
from codetr.data.shapes import SHAPES
from codetr.settings import check_settings
from codetr.settings.relations import MODEL_RELATIONS

EXPERIMENT = "co_dino_5scale_r50_1x_coco"
DATA = (
    "data=synthetic",
    "data.source.num_train=4",
    "data.source.num_val=2",
    "data.eval_batch_size=2",
)
PLAIN = ("trainer=cpu", "evaluation=soft_nms", "augmentation=flip")


@pytest.fixture(params=["query_head", "query_head.dn_generator"], ids=["mmdet 2", "mmdet 3"])
def official(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A tiny official file of the built-in data's classes, in each dialect."""
    torch.manual_seed(0)
    state = to_official(tiny_model(len(SHAPES)).state_dict())
    label = state.pop("query_head.label_embedding.weight")
    state[f"{request.param}.label_embedding.weight"] = label
    return save_official(tmp_path / "official.pth", state, [*SHAPES])


def metrics(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


def test_converted_and_direct_file_evaluate_alike(
    command: Command, official: Path, data_root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    done = command("scripts/convert.py", *given(official, out), *TINY)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split()[1] == "used"
    assert [line.split() for line in lines[2:5]] == [
        ["0", "unused"],
        ["0", "missing"],
        ["0", "of", "another", "shape"],
    ]
    assert read_detector_file(out).record.classes.names == tuple(SHAPES)

    data = (*DATA, f"data.root={data_root}", *PLAIN)
    done = command("eval.py", f"checkpoint={out}", *data, "name=converted")
    assert done.returncode == 0, done.stderr
    source = f"checkpoint=official:{official}"
    done = command("eval.py", source, f"experiment={EXPERIMENT}", *TINY, *data, "name=direct")
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "runs/direct") == metrics(tmp_path / "runs/converted")
    predictions = [tmp_path / f"runs/{name}/predictions.json" for name in ("direct", "converted")]
    assert json.loads(predictions[0].read_text()) == json.loads(predictions[1].read_text()) != []


def test_training_starts_from_it_with_other_classes(
    command: Command, official: Path, small: tuple[str, ...], tmp_path: Path
) -> None:
    renamed = [f"other {i}" if i < 2 else name.upper() for i, name in enumerate(SHAPES)]
    content = torch.load(official, weights_only=True)
    save_official(official, content["state_dict"], renamed)
    sizes = [o for o in small if not o.startswith("model.")]
    source = f"checkpoint=official:{official}"
    done = command("train.py", *sizes, *TINY, source, "debug=fast", "optimizer.lr=0", "name=a")
    assert done.returncode == 0, done.stderr
    assert "classes of the checkpoint, by name" in done.stdout
    assert "copied" in done.stdout
    assert "other 0, other 1" in done.stdout
    record = read_detector_file(tmp_path / "runs/a/last.ckpt")
    name = "head.classify.0.weight"
    theirs = content["state_dict"]["query_head.cls_branches.0.weight"]
    torch.testing.assert_close(record.weights[name][2:], theirs[2:])
    assert not torch.equal(record.weights[name][:2], theirs[:2])


class Evil:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


def malicious(folder: Path) -> Path:
    torch.save({"meta": Evil(f"touch {folder / 'trace'}"), "state_dict": {}}, folder / "evil.pth")
    return folder / "evil.pth"


def given(path: Path, out: Path) -> tuple[str, ...]:
    """The words of scripts/convert.py."""
    return f"checkpoint=official:{path}", f"out={out}", f"experiment={EXPERIMENT}"


def converted(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit status of scripts/convert.py in this process."""
    monkeypatch.setattr(sys, "argv", ["convert.py", *arguments])
    try:
        runpy.run_path(str(ROOT / "scripts/convert.py"), run_name="__main__")
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_malicious_file_is_refused(command: Command, tmp_path: Path) -> None:
    path = malicious(tmp_path)
    done = command(
        "eval.py", f"checkpoint=official:{path}", f"experiment={EXPERIMENT}", "data.root=x"
    )
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [
        done.stderr.strip().splitlines()[-1]
    ]
    assert "evil.pth: refers to 'posix.system'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "trace").exists()


def test_settings_that_contradict_are_not_converted(
    official: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They would stand in the record. What only training needs, as teachers' files, may lack."""
    out = tmp_path / "out.safetensors"
    assert converted(monkeypatch, *given(official, out), *TINY, "model.heads=7") == 2
    assert "error: model.heads=7 does not divide model.dim=" in capsys.readouterr().err
    assert not out.exists()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = compose("convert", ["experiment=teach_yolos_s_150e_coco"])
    check_settings(cfg, relations=MODEL_RELATIONS)


def test_malicious_file_is_not_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    arguments = (*given(malicious(tmp_path), out), "strict=false")
    assert converted(monkeypatch, *arguments) == 2
    assert "error: " in capsys.readouterr().err
    assert not (tmp_path / "trace").exists()
    assert not out.exists()


def test_what_does_not_fit_is_refused_unless_told(
    official: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = torch.load(official, weights_only=True)
    content["state_dict"]["mask_head.weight"] = torch.ones(1)
    torch.save(content, official)
    out = tmp_path / "out.safetensors"
    arguments = (*given(official, out), *TINY)
    assert converted(monkeypatch, *arguments) == 2
    printed = capsys.readouterr()
    assert "unused: mask_head.weight" in printed.out
    assert "1 unused (mask_head.weight)" in printed.err
    assert not out.exists()
    assert converted(monkeypatch, *arguments, "strict=false") == 0
    assert out.is_file()
