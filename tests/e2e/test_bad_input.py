"""Whatever a user can correct is one line on stderr and exit status 2."""

from pathlib import Path

import pytest
from commands import SMALL, Command, write_coco
from hydra import compose, initialize_config_dir

from codetr.conf_folder import conf_folder
from codetr.errors import UserError
from codetr.training.train import train

COCO = ("data=coco", "data.num_workers=0")


def coco_folder(folder: Path) -> Path:
    """Two images with a box each; returns the training split's annotation file."""
    write_coco(folder, {"a.png": [[1, 1, 20, 20]], "b.png": [[5, 5, 20, 20]]})
    return folder / "annotations/instances_train2017.json"


def message_of(folder: Path, *overrides: str) -> str:
    """What training in this process says is wrong. It stops before there is a model to train."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        changes = [o for o in SMALL if not o.startswith("data.")]
        cfg = compose("train", [*changes, f"paths.run_dir={folder}", *overrides])
    with pytest.raises(UserError) as caught:
        train(cfg)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_folder(tmp_path: Path) -> None:
    assert "/no/such/folder" in message_of(tmp_path, *COCO, "data.root=/no/such/folder")


@pytest.mark.parametrize("case", ["broken JSON", "unknown category"])
def test_bad_annotations(tmp_path: Path, case: str) -> None:
    annotations = coco_folder(tmp_path / "coco")
    text = annotations.read_text()
    if case == "broken JSON":
        annotations.write_text(text[:100])
    else:
        annotations.write_text(text.replace('"category_id": 7', '"category_id": 9'))
    message = message_of(tmp_path, *COCO, f"data.root={tmp_path / 'coco'}")
    assert str(annotations) in message


@pytest.mark.parametrize("key", ["ckpt_path", "checkpoint"])
def test_missing_checkpoint(tmp_path: Path, key: str) -> None:
    coco_folder(tmp_path / "coco")
    root = f"data.root={tmp_path / 'coco'}"
    assert "/no/such.ckpt" in message_of(tmp_path, *COCO, root, f"{key}=/no/such.ckpt")


def test_unreadable_image(command: Command, small: tuple[str, ...], tmp_path: Path) -> None:
    coco_folder(tmp_path / "coco")
    (tmp_path / "coco/train2017/a.png").write_bytes(b"no image")
    options = [o for o in small if not o.startswith("data.")]
    done = command("train.py", *options, *COCO, f"data.root={tmp_path / 'coco'}", "debug=fast")
    assert done.returncode == 2, done.stderr[-2000:]
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "train2017/a.png" in errors[0]
    assert "Traceback" not in done.stderr


def test_typo_in_a_key_or_an_option(command: Command) -> None:
    done = command("train.py", "optimizer.learning_rate=1")
    assert done.returncode == 2
    assert "Key 'learning_rate' is not in struct" in done.stderr
    done = command("train.py", "schedule=1y")
    assert done.returncode == 2
    assert "Could not find 'schedule/1y'" in done.stderr
    assert "did you mean schedule=1x" in done.stderr
    done = command("train.py", "experiment=finetun")
    (line,) = done.stderr.strip().splitlines()
    assert "did you mean experiment=finetune" in line
    assert len(line) < 300
    done = command("eval.py", "checkpont=a.ckpt")
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert "did you mean checkpoint?" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train.py", "data=custom"), "data.root is not set: give data.root=FOLDER"),
        (("train.py", "schedule.epochs=abc"), "schedule.epochs=abc"),
        (("train.py", "schedul=1x"), "did you mean schedule?"),
        (("train.py", "schedule.epoch=3"), "did you mean schedule.epochs?"),
        (("scripts/inspect_data.py", "data=custum"), "did you mean data=custom?"),
        (("scripts/predict.py", "checkpoint=a.ckpt"), "source is not set"),
        (("train.py", "imgsz=640"), "there is no setting imgsz: did you mean augmentation?"),
        (("train.py", "zzz=640"), "there is no setting zzz. A new one needs"),
        (("train.py", "data=a/data.yaml"), "data=custom data.root=FOLDER"),
        (("train.py", "data=/a/data.yaml"), "data=custom data.root=FOLDER"),
        (("train.py", "data=../a"), "data=custom data.root=FOLDER"),
        (("train.py", "data.root=my", "photos"), "photos: is no setting, which is KEY=VALUE"),
        (("train.py", "-m", "aux_heads"), "aux_heads: is no setting, which is KEY=VALUE"),
    ],
)
def test_mistakes_of_a_first_hour_are_one_line(
    words: tuple[str, ...], said: str, command: Command
) -> None:
    done = command(*words)
    assert done.returncode == 2, done.stderr[-1000:]
    (line,) = [line for line in done.stderr.splitlines() if line.strip()]
    assert line.startswith("error: ")
    assert said in line


@pytest.mark.parametrize("script", ["train.py", "scripts/predict.py"])
@pytest.mark.parametrize("wrong", ["runs", "runs/a", "runs/a/log"])
def test_a_run_folder_that_cannot_be_made(
    command: Command, tmp_path: Path, script: str, wrong: str
) -> None:
    """A file stands in its place; or a folder in that of Hydra's log."""
    more = ("checkpoint=x.ckpt", "source=x.png") if script != "train.py" else ()
    place = tmp_path / wrong
    if wrong.endswith("log"):
        place = tmp_path / "runs" / "a" / f"{Path(script).stem}.log"
        place.mkdir(parents=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    done = command(script, f"paths.runs={tmp_path}/runs", "name=a", *more)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}/runs")
