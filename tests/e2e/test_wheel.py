"""The wheel in a bare environment, outside the clone, with a folder of the user's own."""

from __future__ import annotations

import re
import site
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import ROOT, SMALL, environment
from test_packages import build, tree  # noqa: F401
from warm import TIMEOUT_S

Call = Callable[..., "subprocess.CompletedProcess[str]"]

TWO_STEPS = (
    *(o for o in SMALL if not o.startswith("data.source")),
    "data.source.num_train=4",
    "data.source.num_val=2",
    "data.num_workers=0",
    "schedule.epochs=1",
    "optimizer.lr=1e-4",
)

USE = """
import codetr
from PIL import Image

detector = codetr.load("runs/mine/best.ckpt", device="cpu")
found = detector.predict(Image.new("RGB", (64, 48)), threshold=0.0)
print(codetr.__version__, codetr.__file__)
"""


@pytest.fixture(scope="module")
def bare(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Call:  # noqa: F811
    """Run a program of an environment that has codetr from its wheel alone, in one folder."""
    place = tmp_path_factory.mktemp("bare")
    venv.create(place / "env", symlinks=True)
    python = place / "env/bin/python"
    wheel = build(tree, "wheel", place / "wheel")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps"]
    subprocess.run([*pip, "--no-index", "--quiet", str(wheel)], check=True, capture_output=True)
    # dependencies as paths: a path in a .pth file brings no editable install of its own
    (packages,) = (place / "env").glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    work = place / "work"
    work.mkdir()

    def call(program: str, *words: str) -> subprocess.CompletedProcess[str]:
        env = {k: v for k, v in environment().items() if k != "PYTHONPATH"} | {"PYTHONPATH": "own"}
        line = [str(place / "env/bin" / program), *words]
        return subprocess.run(
            line, cwd=work, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )

    call.work = work  # type: ignore[attr-defined]
    return call


def write_documented_folder(work: Path) -> None:
    """The files of docs/extending.md."""
    page = (ROOT / "docs/extending.md").read_text("utf-8")
    files = re.findall(r'```\w+ title="([^"]+)"\n(.*?)```', page, flags=re.DOTALL)
    assert len(files) == 5
    for name, text in files:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(text)


def test_own_folder_trains_and_its_checkpoint_is_used(bare: Call) -> None:
    work: Path = bare.work  # type: ignore[attr-defined]
    write_documented_folder(work)
    page = (ROOT / "docs/extending.md").read_text("utf-8")
    train = "codetr-train --config-dir own experiment=mine"
    evaluate = "codetr-eval checkpoint=runs/NAME/best.ckpt"
    assert f"{train}\n" in page
    assert f"{evaluate}\n" in page
    done = bare(*train.split(), *TWO_STEPS, "name=mine")
    assert done.returncode == 0, done.stderr[-3000:]
    logged = (work / "runs/mine/metrics.csv").read_text()
    assert "loss/collaborative/centre/cls" in logged
    assert "loss/shifted/layer0/giou" in logged
    done = bare(*evaluate.replace("NAME", "mine").split(), "trainer=cpu")
    assert done.returncode == 0, done.stderr[-3000:]
    done = bare("python", "-c", USE)
    assert done.returncode == 0, done.stderr[-3000:]
    version, file = done.stdout.split()[-2:]
    assert version == "0.1.0"
    assert Path(file).is_relative_to(work.parent / "env"), "not from the clone"


@pytest.mark.parametrize("program", ["codetr-predict", "codetr-export", "codetr-inspect"])
def test_commands_explain_themselves(bare: Call, program: str) -> None:
    done = bare(program, "--help")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip()


def test_zoo_lists_published_weights(bare: Call) -> None:
    done = bare("codetr-zoo")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "co_dino_5scale_r50_1x_coco" in done.stdout
