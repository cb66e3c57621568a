"""Every command of README.md and docs/ runs, at small size. A new one is tested by being there.

Words in capitals stand for something: ``FOLDER`` a data set in COCO format, ``PHOTOS`` a folder of
images, ``IMAGE.png`` one of them, ``WEIGHTS`` a backbone's file, ``OFFICIAL`` an official file,
``MODEL.onnx`` an exported one, ``TEACHER.json`` a teacher's boxes, ``runs/NAME`` a finished run,
``runs/OTHER`` another one, ``runs/sweeps/NAME`` a finished sweep. ``zoo:...`` is a tiny file with
an entry of its own.
"""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import timm
from commands import ROOT, SMALL, Command, arguments, environment, write_coco
from safetensors.torch import save_file
from tiny_checkpoint import save_tiny
from tiny_official import TINY as OFFICIAL_TINY
from tiny_official import save_official, tiny_model, to_official
from tiny_zoo import write_table
from warm import run_warm

CHAINED = "bccd.md"  # its commands build on each other: test_bccd_page
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if p.name != CHAINED)]
AS_IT_STANDS = (
    *("scripts/parity.py", "scripts/parameters.py", "scripts/inspect_data.py", "scripts/zoo.py"),
    "scripts/gpu_check.py",
)
TINY = (*(o for o in SMALL if not o.startswith("data.")), "debug=fast", "data.num_workers=0")
EPOCHS = ("checkpointing=every_epoch", "trainer.max_epochs=2")
FEW_LAYERS = ["model.checkpointed=0"]
"""What experiments checkpoint is more than the encoder layers of a tiny model."""
OF_A_RUN = {
    "eval.py": ("trainer=cpu",),
    "scripts/predict.py": ("device=cpu",),
    "scripts/teacher_boxes.py": ("trainer=cpu",),
    "scripts/analyse.py": ("device=cpu", "images=2", "shown=1"),
    "scripts/export.py": ("cases=[[2,96,128],[1,128,96]]",),
    "scripts/sweep_report.py": (),
}
"""Programs that read a run, and what makes them quick."""
QUICK = ("--repeats", "1")
SIZES = ("--height", "64", "--width", "96", "--no-memory")
SLIM = (
    "--no-baseline",
    "--overrides",
    "model.dim=64",
    "model.heads=4",
    "model.hidden=32",
    "model.encoder_layers=1",
    "model.decoder_layers=2",
    "model.num_queries=12",
    "model.backbone.name=resnet10t",
)
BENCHMARKS = {
    "op": (*QUICK, "--where", "small", "--no-memory"),
    "step": (*QUICK, *SIZES, *SLIM),
    "launches": (*QUICK, *SIZES, *SLIM[1:]),
    "infer": (*QUICK, *SIZES, *SLIM),
    "aux_heads": (*QUICK, *SIZES),
    "data": (*QUICK, "--count", "2", "--large", "1", "--no-memory"),
    "eval": (*QUICK, "--images", "20", "--baseline-images", "10", "--no-memory"),
}
"""The benchmarks of scripts/bench.py, and what makes them quick."""


def blocks(language: str) -> list[str]:
    """The code blocks of all pages in a language."""
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    return [b for t in texts for b in re.findall(rf"```{language}\n(.*?)```", t, flags=re.DOTALL)]


def documented() -> list[str]:
    """The lines of all bash blocks, without their comments."""
    lines = [line.split("  #")[0].strip() for b in blocks("bash") for line in b.splitlines()]
    return [line for line in lines if line]


PROGRAMS = sorted({re.sub(r"\s+#.*", "", c) for c in documented() if c.startswith("python ")})

ONNX_EXPORT = next(c for c in PROGRAMS if "scripts/export.py" in c and "format=onnx" in c)


def test_every_command_is_of_a_known_kind() -> None:
    makes = {line.split()[1] for line in documented() if line.startswith("make ")}
    assert makes == {"train", "test"}
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert makes <= targets
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    others = [c for c in documented() if not c.startswith(("make ", "python "))]
    assert others == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_coco(tmp_path / "coco", {"a.png": [[8, 8, 20, 24]], "b.png": [[30, 12, 28, 30]]})
    return tmp_path / "coco"


@pytest.fixture(scope="module")
def run(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the built-in data; its parent holds no other."""
    place = tmp_path_factory.mktemp("run")
    line = arguments("train.py", *TINY, *_built_in(data_root), *EPOCHS, "name=made")
    done = run_warm(line, place, environment())
    assert done.returncode == 0, done.stderr
    return place / "runs/made"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector file of a model of milliseconds."""
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model.safetensors", "augmentation=none")


@pytest.fixture(scope="module")
def onnx_file(run: Path) -> Path:
    """The run's detector, exported by the documented command: a minute, hence once."""
    _, script, *overrides = shlex.split(ONNX_EXPORT)
    overrides = [o.replace("runs/NAME", str(run)) for o in overrides]
    line = arguments(script, *overrides, *OF_A_RUN[script])
    done = run_warm(line, run, environment())
    assert done.returncode == 0, done.stderr
    return run / "model.onnx"


@pytest.mark.slow  # test_bccd_page exports and runs an ONNX file every time
def test_onnx_export(onnx_file: Path) -> None:
    assert onnx_file.stat().st_size > 0


def marked(line: str) -> object:
    """A parameter; slow where the ONNX file is needed."""
    return pytest.param(line, marks=[pytest.mark.slow] * ("onnx_example" in line))


@pytest.mark.parametrize("line", [marked(line) for line in PROGRAMS if line != ONNX_EXPORT])
def test_command(
    line: str,
    command: Command,
    folder: Path,
    data_root: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CODETR_HOME", str(tmp_path / "home"))
    _, script, *overrides = shlex.split(line)
    overrides = [o.replace("FOLDER", str(folder)) for o in overrides]
    overrides = [o.replace("PHOTOS", str(folder / "train2017")) for o in overrides]
    if any("WEIGHTS" in o for o in overrides):
        file = tmp_path / "weights.safetensors"
        save_file(timm.create_model("tf_efficientnet_lite0").state_dict(), file)
        overrides = [o.replace("WEIGHTS", str(file)) for o in overrides]
    if any(o.startswith("data.teachers") for o in overrides):
        _write_teacher(folder, tmp_path / "TEACHER.json")
    if any("OFFICIAL" in o for o in overrides):
        overrides = [o.replace("OFFICIAL", str(_official(folder, tmp_path))) for o in overrides]
        more = _of_official(script, overrides)
    elif any("zoo:" in o for o in overrides):
        _zoo(folder, tmp_path / "home")
        overrides = [re.sub(r"zoo:\w+", "zoo:tiny", o) for o in overrides]
        more = _of_official(script, overrides) if script == "train.py" else OF_A_RUN[script]
    elif script in AS_IT_STANDS:
        overrides = [str(ROOT / o) if "golden" in o else o for o in overrides]
        more = []
    elif script == "scripts/bench.py":
        (tmp_path / "benchmarks").mkdir()
        more = [*BENCHMARKS[overrides[0]]]
    elif script == "scripts/info.py":
        overrides = [o.replace("runs/NAME", str(request.getfixturevalue("run"))) for o in overrides]
        more = ["size=[64,96]", "repeats=1", "device=cpu"]
    elif script == "scripts/onnx_example.py":
        shutil.copy(request.getfixturevalue("onnx_file"), tmp_path / "MODEL.onnx")
        shutil.copy(folder / "train2017/a.png", tmp_path / "IMAGE.png")
        more = []
    elif script in OF_A_RUN:
        made = request.getfixturevalue("run")
        overrides = [o.replace("runs/sweeps/NAME", str(made.parent)) for o in overrides]
        overrides = [o.replace("runs/NAME", str(made)) for o in overrides]
        if any("runs/OTHER" in o for o in overrides):
            shutil.copytree(made, tmp_path / "runs/OTHER")
        more = [*OF_A_RUN[script]]
    else:
        more = _small(overrides, data_root)
        more += ["finder.steps=40"] * ("tune=lr" in overrides)
    done = command(script, *overrides, *more)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("code", sorted(set(blocks("python"))))
def test_python(code: str, folder: Path, tiny: Path, tmp_path: Path) -> None:
    things = {
        "runs/NAME/best.ckpt": tiny,
        "image.jpg": folder / "train2017/a.png",
        "FOLDER_OUT": tmp_path / "out",
    }
    for word, thing in things.items():
        code = code.replace(word, str(thing))
    exec(compile(code, "documentation", "exec"), {})


def _write_teacher(folder: Path, path: Path) -> None:
    """A box on every training image."""
    truth = json.loads((folder / "annotations/instances_train2017.json").read_text())
    category = truth["categories"][0]["id"]
    boxes = [
        {"image_id": i["id"], "category_id": category, "bbox": [8, 8, 20, 20], "score": 0.5}
        for i in truth["images"]
    ]
    path.write_text(json.dumps(boxes))


def _official(folder: Path, tmp_path: Path) -> Path:
    """A tiny official file of the folder's classes."""
    truth = json.loads((folder / "annotations/instances_train2017.json").read_text())
    names = [category["name"] for category in truth["categories"]]
    state = to_official(tiny_model(len(names)).state_dict())
    return save_official(tmp_path / "official.pth", state, names)


def _zoo(folder: Path, home: Path) -> None:
    """Published weights by the name of ``tiny``, of the folder's classes."""
    tiny = {
        "page": "https://example.org",
        "experiment": "co_dino_5scale_r50_1x_coco",
        "overrides": [*OFFICIAL_TINY, "augmentation=flip"],
    }
    write_table(home, tiny=tiny)
    _official(folder, home / "zoo").rename(home / "zoo/tiny.pth")


def _of_official(script: str, overrides: list[str]) -> list[str]:
    """The model of the file, on a CPU."""
    if script == "eval.py":
        return [*OFFICIAL_TINY, "trainer=cpu", "augmentation=flip"]
    if script == "train.py":
        said = {o.split("=")[0] for o in overrides}
        quick = [o for o in TINY if not o.startswith("model.") and o.split("=")[0] not in said]
        return [*OFFICIAL_TINY, *quick, "augmentation=flip", *FEW_LAYERS]
    return [*OFFICIAL_TINY]


def _built_in(data_root: Path) -> list[str]:
    return [f"data.root={data_root}", "data.source.num_train=4", "data.source.num_val=2"]


def _small(overrides: list[str], data_root: Path) -> list[str]:
    """What makes a documented command small; what the command says itself stays."""
    said = {o.split("=")[0] for o in overrides}
    more = [o for o in TINY if o.split("=")[0] not in said]
    if "debug" in said:
        more += ["schedule.epochs=1"]
    if "trainer" in said:  # trainer=ddp: two CPU processes
        more += ["trainer.accelerator=cpu", "trainer.precision=32"]
    if not any(o.startswith("data=") or o.startswith("experiment=") for o in overrides):
        more += _built_in(data_root)
    if "experiment" in said or "model" in said:
        more += ["model=co_dino_tiny"] if "model" not in said else []
        more += ["model.backbone.pretrained=false"] * ("model.backbone.pretrained" not in said)
    more += FEW_LAYERS * ("experiment" in said)
    return more
