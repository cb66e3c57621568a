from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import yaml

from codetr.conf_folder import conf_folder
from codetr.run_folder import RunFolder

FILES = [name for name, kind in vars(RunFolder).items() if isinstance(kind, property)]


def test_files_have_names_of_their_own_in_the_folder() -> None:
    folder = RunFolder(Path("runs/a"))
    paths = [getattr(folder, name) for name in FILES]
    assert len(FILES) > 9
    assert {path.parent for path in paths} == {Path("runs/a")}
    assert len(set(paths)) == len(paths)
    with pytest.raises(FrozenInstanceError):
        folder.path = Path("b")  # type: ignore[misc]


def test_the_best_checkpoint_is_called_as_lightning_calls_it() -> None:
    best = yaml.safe_load((conf_folder() / "checkpointing/default.yaml").read_text())["best"]
    assert RunFolder(Path("a")).best.name == f"{best['filename']}.ckpt"
    assert best["dirpath"] == "${paths.run_dir}"
