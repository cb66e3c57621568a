"""The folder of a run may come from a stranger: its texts are texts."""

from itertools import pairwise
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from codetr.errors import UserError
from tools.sweeps.runs import read_run, read_runs


def test_nothing_in_a_run_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = tmp_path / "canary"
    OmegaConf.register_new_resolver("planted", lambda: canary.touch())
    monkeypatch.setenv("SECRET", "of the user")
    texts = {"a": "${oc.env:SECRET}", "b": "${planted:}", "c": "${oc.create:{_target_:os.getcwd}}"}
    (tmp_path / "config.yaml").write_text(
        OmegaConf.to_yaml({"swept": texts, "seed": 3, "aux_heads": {"${planted:}": 1}})
    )
    run = read_run(tmp_path)
    assert (run.swept, run.seed, run.heads) == (texts, 3, ("${planted:}",))
    assert not canary.exists()
    OmegaConf.clear_resolver("planted")


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in pairwise("abcdefghi")
)
"""A billion of them, in a few lines."""


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        "a: " + "[" * 5000,
        "a: " + "[" * 100 + "]" * 100,
        "a: !!python/object/apply:os.getcwd []",
        "a: &a [*a]",
        "- a",
        "a: 2026-01-01",
        "a: \x00",
    ],
)
def test_a_configuration_that_is_none_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml") as caught:
        read_runs(tmp_path)
    assert "\n" not in str(caught.value)
