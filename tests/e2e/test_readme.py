"""Every command of README.md and docs/ runs, at small size. A new one is tested by being there."""

import json
import re
import shlex
from pathlib import Path

import pytest
import timm
from commands import ROOT, SMALL, Command, write_coco
from safetensors.torch import save_file
from tiny_official import TINY as OFFICIAL_TINY
from tiny_official import save_official, tiny_model, to_official

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
AS_IT_STANDS = ("scripts/parity.py", "scripts/parameters.py", "scripts/inspect_data.py")
TINY = (*(o for o in SMALL if not o.startswith("data.")), "debug=fast", "data.num_workers=0")


def documented() -> list[str]:
    """The lines of all bash blocks, without their comments."""
    lines = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL):
            lines += [line.split("  #")[0].strip() for line in block.splitlines()]
    return [line for line in lines if line]


PROGRAMS = sorted({line for line in documented() if line.startswith("python ")})


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


@pytest.mark.parametrize("line", PROGRAMS)
def test_command(
    line: str, command: Command, folder: Path, data_root: Path, tmp_path: Path
) -> None:
    _, script, *overrides = shlex.split(line)
    overrides = [o.replace("FOLDER", str(folder)) for o in overrides]
    if any("WEIGHTS" in o for o in overrides):
        file = tmp_path / "weights.safetensors"
        save_file(timm.create_model("tf_efficientnet_lite0").state_dict(), file)
        overrides = [o.replace("WEIGHTS", str(file)) for o in overrides]
    if any("OFFICIAL" in o for o in overrides):
        overrides = [o.replace("OFFICIAL", str(_official(folder, tmp_path))) for o in overrides]
        cpu = ["trainer=cpu", "augmentation=flip"] if script == "eval.py" else []
        done = command(script, *overrides, *OFFICIAL_TINY, *cpu)
    elif script in AS_IT_STANDS:
        done = command(script, *(str(ROOT / o) if "golden" in o else o for o in overrides))
    elif any("runs/NAME" in o for o in overrides):
        made = command("train.py", *TINY, _built_in(data_root), "name=made")
        assert made.returncode == 0, made.stderr
        overrides = [o.replace("runs/NAME", str(tmp_path / "runs/made")) for o in overrides]
        done = command(script, *overrides, "trainer=cpu")
    else:
        done = command(script, *overrides, *_small(overrides, data_root))
    assert done.returncode == 0, done.stderr[-3000:]


def _official(folder: Path, tmp_path: Path) -> Path:
    """A tiny official file of the folder's classes."""
    truth = json.loads((folder / "annotations/instances_train2017.json").read_text())
    names = [category["name"] for category in truth["categories"]]
    state = to_official(tiny_model(len(names)).state_dict())
    return save_official(tmp_path / "official.pth", state, names)


def _built_in(data_root: Path) -> str:
    return f"data.root={data_root}"


def _small(overrides: list[str], data_root: Path) -> list[str]:
    """What makes a documented command small; what the command says itself stays."""
    said = {o.split("=")[0] for o in overrides}
    more = [o for o in TINY if o.split("=")[0] not in said]
    if "debug" in said:
        more += ["schedule.epochs=1"]
    if "trainer" in said:  # trainer=ddp: two CPU processes
        more += ["trainer.accelerator=cpu", "trainer.precision=32"]
    if not any(o.startswith("data=") or o.startswith("experiment=") for o in overrides):
        more += [_built_in(data_root), "data.source.num_train=4", "data.source.num_val=2"]
    if "experiment" in said or "model" in said:
        more += ["model=co_dino_tiny"] if "model" not in said else []
        more += ["model.backbone.pretrained=false"] * ("model.backbone.pretrained" not in said)
    return more
