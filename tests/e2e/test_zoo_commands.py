"""Published weights by name in the true commands, from a server and a folder of this machine."""

import json
import subprocess
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from commands import Command, arguments, environment
from PIL import Image
from tiny_official import TINY, save_official, tiny_model, to_official
from tiny_zoo import Server, served, write_table

import codetr
from codetr.checkpoints.files import read_detector_file
from codetr.data.shapes import SHAPES
from codetr.errors import UserError

EXPERIMENT = "co_dino_5scale_r50_1x_coco"
DATA = ("data=synthetic", "data.source.num_train=4", "data.source.num_val=2")
POSTPROCESS = ("evaluation.postprocess.pre_nms=10", "evaluation.postprocess.max_detections=7")


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """A tiny official file of the built-in data's classes."""
    torch.manual_seed(0)
    return save_official(
        tmp_path / "tiny.pth", to_official(tiny_model(len(SHAPES)).state_dict()), [*SHAPES]
    )


@pytest.fixture
def server(official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serves it as ``zoo:tiny``, for all commands."""
    monkeypatch.setenv("CODETR_HOME", str(tmp_path / "home"))
    content = official.read_bytes()
    with served() as server:
        server.files["tiny.pth"] = content
        tiny = {
            "url": server.url("tiny.pth"),
            "sha256": sha256(content).hexdigest()[:8],
            "experiment": EXPERIMENT,
            "overrides": [*TINY, "augmentation=small", *POSTPROCESS],
            "ap": 1.5,
        }
        write_table(tmp_path / "home", tiny=tiny, page={"page": "https://example.org"})
        yield server


def metrics(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


def test_eval_equals_that_of_the_official_file(
    command: Command, server: Server, official: Path, data_root: Path, tmp_path: Path
) -> None:
    data = (*DATA, f"data.root={data_root}", "trainer=cpu", "panel=null")
    done = command("eval.py", "checkpoint=zoo:tiny", *data, "name=zoo")
    assert done.returncode == 0, done.stderr
    assert "100%" in done.stderr
    options = (f"experiment={EXPERIMENT}", *TINY, "augmentation=small", *POSTPROCESS)
    done = command("eval.py", f"checkpoint=official:{official}", *options, *data, "name=official")
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "runs/zoo") == metrics(tmp_path / "runs/official")
    found = [
        json.loads((tmp_path / f"runs/{name}/predictions.json").read_text())
        for name in ("zoo", "official")
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 2 * 7  # as the entry says
    server.files.clear()
    done = command("eval.py", "checkpoint=zoo:tiny", *data, "evaluation=coco", "name=again")
    assert done.returncode == 0, done.stderr
    assert "100%" not in done.stderr


def test_training_keeps_its_own_model_and_classes(
    command: Command, server: Server, official: Path, small: tuple[str, ...], tmp_path: Path
) -> None:
    renamed = [f"other {i}" if i < 2 else name for i, name in enumerate(SHAPES)]
    theirs = torch.load(official, weights_only=True)["state_dict"]
    server.files["tiny.pth"] = save_official(official, theirs, renamed).read_bytes()
    table = tmp_path / "home/zoo/mine.yaml"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(line for line in lines if "sha256" not in line))
    sizes = [o for o in small if not o.startswith("model.")]
    own = (*TINY, "aux_heads=[atss]", "debug=fast", "optimizer.lr=0", "name=a")
    done = command("train.py", *sizes, *own, "checkpoint=zoo:tiny")
    assert done.returncode == 0, done.stderr
    assert "initial weights from zoo:tiny" in done.stdout
    assert "other 0, other 1" in done.stdout
    trained = read_detector_file(tmp_path / "runs/a/last.ckpt")
    assert trained.record.classes.names == tuple(SHAPES)
    assert not any("rcnn" in name for name in trained.schemes)
    ours = trained.weights["head.classify.0.weight"]
    official_rows = theirs["query_head.cls_branches.0.weight"]
    torch.testing.assert_close(ours[2:], official_rows[2:])
    assert not torch.equal(ours[:2], official_rows[:2])


def test_predict_and_export(command: Command, server: Server, tmp_path: Path) -> None:
    Image.new("RGB", (96, 64), (90, 120, 30)).save(tmp_path / "a.png")
    done = command(
        "scripts/predict.py", "checkpoint=zoo:tiny", "source=a.png", "threshold=0", "name=p"
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "runs/p/predictions.json").read_text())) == 7
    done = command(
        "scripts/export.py",
        "checkpoint=zoo:tiny",
        "format=pt2",
        "out=model.pt2",
        "fixed=true",
        "cases=[[1,96,128]]",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model.pt2").is_file()
    assert server.asked == ["/tiny.pth"] * 2


def test_load(server: Server, tmp_path: Path) -> None:
    predictor = codetr.load("zoo:tiny", device="cpu")
    assert predictor.record.classes.names == tuple(SHAPES)
    assert len(predictor.predict(Image.new("RGB", (96, 64)), threshold=0)) == 7
    with pytest.raises(UserError, match="zoo:tiny: brings its own model"):
        codetr.load("zoo:tiny", experiment=EXPERIMENT)
    with pytest.raises(UserError, match="did you mean tiny"):
        codetr.load("zoo:tyni")


def test_mistakes_are_one_line(command: Command, server: Server, tmp_path: Path) -> None:
    for options, said in {
        ("eval.py", "checkpoint=zoo:tyni"): "zoo:tyni: no published weights of that name",
        ("eval.py", "checkpoint=zoo:tiny", f"experiment={EXPERIMENT}"): "brings its own model",
        ("eval.py", "checkpoint=zoo:tiny"): "data.root is not set: give data.root=FOLDER",
        ("scripts/zoo.py", "checkpoint=zoo:page"): "get it from https://example.org and save it as",
    }.items():
        done = command(*options)
        assert done.returncode == 2
        (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
        assert said in line
        assert "Traceback" not in done.stderr


def test_a_file_of_the_hub(server: Server, official: Path, tmp_path: Path) -> None:
    """In a process of its own: the Hub's library reads its environment when it is imported."""
    content = official.read_bytes()
    server.files["user/model/resolve/main/weights.pth"] = content
    hub = {"hub": {"repo": "user/model", "file": "weights.pth"}}
    write_table(tmp_path / "home", hub=hub, sure=hub | {"sha256": sha256(content).hexdigest()})
    own = {"HF_ENDPOINT": server.url(""), "HF_HUB_CACHE": str(tmp_path / "hub")}

    def fetch(name: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            arguments("scripts/zoo.py", f"checkpoint=zoo:{name}"),
            env=environment() | own,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    refused = fetch("hub")
    assert refused.returncode == 2
    assert "give trust=true" in refused.stderr
    assert server.asked == []
    done = fetch("sure")
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert path.is_relative_to(tmp_path / "hub")
    assert path.read_bytes() == content
    server.files.clear()
    assert fetch("hub").stdout == done.stdout  # it is here now


def test_the_script_lists_and_fetches(command: Command, server: Server, tmp_path: Path) -> None:
    done = command("scripts/zoo.py")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.split()}
    assert rows["tiny"] == ["1.5", "download"]
    assert rows["page"] == ["by", "hand"]
    assert rows[EXPERIMENT] == ["52.1", "download"]
    done = command("scripts/zoo.py", "checkpoint=zoo:tiny")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "home/zoo/tiny.pth"
    assert done.stdout.splitlines() == [str(path)]
    done = command("scripts/zoo.py")
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.split()}
    assert rows["tiny"] == ["1.5", f"{path.stat().st_size / 1e6:.0f}", "here"]
