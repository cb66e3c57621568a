"""Nothing runs that is planted in the state of training from which a run goes on."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from openers import watched
from planted import NODES, TEXTS, places, planted
from test_module import fit, module, pytestmark  # noqa: F401
from torch import Tensor

from codetr.errors import UserError
from codetr.run_folder import RunFolder
from codetr.training.callbacks import LastCheckpoint
from codetr.training.checkpoint_files import resume_path


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """See ``watched``."""
    with watched(tmp_path, monkeypatch) as path:
        yield path


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 9])
def test_texts_and_nodes_of_a_state_of_training_are_not_run(
    tmp_path: Path, canary: Path, step: int
) -> None:
    """At every ``step``-th place of a checkpoint, as ``ckpt_path=FILE`` reads it."""
    fit(tmp_path, module(), LastCheckpoint(tmp_path), epochs=1)
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    found = [place for place, value in places(content) if place and not isinstance(value, Tensor)]
    used = 0
    for place, what in zip(found[::step], itertools.cycle([*TEXTS, *NODES]), strict=False):
        path = tmp_path / "planted.ckpt"
        torch.save(planted(content, place, what), path)
        try:
            given = resume_path(str(path), RunFolder(tmp_path))
            fit(tmp_path, module(), LastCheckpoint(tmp_path), ckpt_path=given)
            used += 1
        except (UserError, AttributeError, KeyError, RuntimeError, TypeError, ValueError):
            pass  # of a state that is none
        assert not canary.exists(), place
    assert used > 0
    print(f"{len(found[::step])} places, {used} used")
