"""The commands of docs/bccd.md, one after the other as a user gives them, on a small VOC folder."""

import json
import re
import shlex
from pathlib import Path

import pytest
import timm
from commands import ROOT, Command
from PIL import Image
from safetensors.torch import save_file
from test_custom_data import write_voc

from codetr.checkpoints.files import read_detector_file

PAGE = ROOT / "docs" / "bccd.md"
CELLS = ("RBC", "WBC", "Platelets")
TINY = (
    "model.dim=32",
    "model.heads=2",
    "model.hidden=32",
    "model.num_queries=20",
    "model.encoder_layers=1",
    "model.decoder_layers=2",
)
SHORT = (
    "trainer=cpu",
    "logger=[csv]",
    "schedule.epochs=1",
    "schedule.warmup_steps=0",
    "trainer.check_val_every_n_epoch=1",
    "trainer.limit_train_batches=2",
    "trainer.log_every_n_steps=1",
)
SMALLER = {
    "train.py": (*TINY, *SHORT),
    "eval.py": ("trainer=cpu",),
    "scripts/predict.py": ("device=cpu", "threshold=0"),
    "scripts/export.py": ("top_k=20",),
}
"""What makes each program quick; the rest of a command stays as it is written."""


def page_commands() -> list[str]:
    """The lines of the page's bash blocks, without their comments."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [re.sub(r"\s+#.*", "", line) for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """BCCD in small: names, classes and proportions are its own, image 7 is in the test split."""
    root = tmp_path / "voc"
    names = [f"BloodImage_{i:05d}" for i in range(8)]
    write_voc(root, {name: CELLS[i % 3] for i, name in enumerate(names)}, test=names[7])
    for name in names:
        Image.new("RGB", (64, 48), (200, 90, 90)).save(root / f"JPEGImages/{name}.jpg")
    (root / "ImageSets/Main/train.txt").write_text("\n".join(names[:5]))
    (root / "ImageSets/Main/val.txt").write_text("\n".join(names[5:7]))
    return root


def more_for(script: str, said: list[str]) -> list[str]:
    """The overrides that make a command quick; built-in data gets few images too."""
    more = [*SMALLER.get(script, ())]
    if "format=pt2" in said:  # a minute otherwise; test_export_file writes free sizes, too
        more += ["fixed=true", "cases=[[1,128,171]]"]
    if script == "train.py" and not any(o.startswith("experiment=") for o in said):
        more += ["data.source.num_train=4", "data.source.num_val=2"]
    return more


def test_every_command_of_the_page(command: Command, folder: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("tf_efficientnet_lite0").state_dict(), weights)
    outputs: dict[str, str] = {}
    for line in page_commands():
        python, script, *said = shlex.split(line)
        assert python == "python", line
        said = [o.replace("FOLDER", str(folder)).replace("WEIGHTS", str(weights)) for o in said]
        done = command(script, *said, *more_for(script, said))
        assert done.returncode == 0, f"{line}\n{done.stderr[-3000:]}"
        outputs[line] = done.stdout

    runs = tmp_path / "runs"
    assert set(SMALLER) <= {line.split()[1] for line in outputs}
    assert "data:image/png;base64," in (tmp_path / "bccd.html").read_text()
    overfitted = json.loads((runs / "bccd_overfit/metrics.json").read_text())
    assert 0 <= overfitted["AP"] <= 1
    record = read_detector_file(runs / "bccd/model.safetensors").record
    assert sorted(record.classes.names) == sorted(CELLS)
    tested = json.loads((runs / "bccd_test/metrics.json").read_text())
    assert (tested["images"], tested["images_in_split"]) == (1, 1)
    for picture in ("bccd_test/panel.png", "bccd/example.png"):
        with Image.open(runs / picture) as drawn:
            assert min(drawn.size) > 0
    assert list((runs / "bccd_pictures/images").glob("BloodImage_*"))
    exports = [text for line, text in outputs.items() if "scripts/export.py" in line]
    assert len(exports) == 2
    assert [text.count("of detections beyond") for text in exports] == [2, 1]
    tables = [text for line, text in outputs.items() if "checkpoint=runs/shapes" in line]
    assert "Platelets" in tables[0]
