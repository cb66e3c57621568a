"""One page per model: few files say what a model is, and docs/models.md names them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from tiny import CONF, options

from codetr.moved_keys import MOVED_KEYS
from tools.docs.config_files import read_option_file

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text("utf-8")
NAMED = re.findall(r"^\| `(\w+_coco)` \| (.+) \| (.+) \|$", PAGE, re.MULTILINE)
MOST = {"model": 4, "supervision": 2}


def files(group: str, *overrides: str) -> list[str]:
    """The files below conf/GROUP that train.py's configuration is composed of."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        found = loader.compute_defaults_list("train", [*overrides], RunMode.RUN).defaults
    paths = [entry.config_path or "" for entry in found]
    return sorted(
        {f"{p.removeprefix(group + '/')}.yaml" for p in paths if p.startswith(f"{group}/")}
    )


def test_the_page_names_recipes_of_four_kinds() -> None:
    assert len(NAMED) == 4


@pytest.mark.parametrize(("experiment", "model", "supervision"), NAMED)
def test_the_page_names_all_files_of_a_recipe(
    experiment: str, model: str, supervision: str
) -> None:
    for group, cell in (("model", model), ("supervision", supervision)):
        used = files(group, f"experiment={experiment}")
        assert sorted(re.findall(r"`([^`]+)`", cell)) == used
        assert len(used) <= MOST[group]


@pytest.mark.parametrize("model", options("model"))
def test_a_model_is_known_from_few_files(model: str) -> None:
    for group, most in MOST.items():
        assert 1 <= len(files(group, f"model={model}")) <= most


@pytest.mark.parametrize("model", options("model"))
def test_no_model_begins_as_another_one(model: str) -> None:
    page = read_option_file(CONF / "model" / f"{model}.yaml", CONF)
    assert {d.default for d in page.defaults if not d.name} == {"_self_"}


def test_the_matcher_is_written_once() -> None:
    written = [
        path.relative_to(CONF).as_posix()
        for folder in ("scheme", "supervision", "aux_heads", "model")
        for path in (CONF / folder).rglob("*.yaml")
        if "HungarianMatcher" in path.read_text("utf-8")
    ]
    assert written == ["supervision/default.yaml"]


def test_the_page_names_all_moved_keys() -> None:
    rows = dict(re.findall(r"^\| `([\w.]+)` \| `([\w.]+)` \|$", PAGE, re.MULTILINE))
    assert rows == MOVED_KEYS
