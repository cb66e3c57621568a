"""What eval.py needs for an official file: the experiment, and the data's category ids."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from codetr.classes import ClassList, with_ids_of
from codetr.conf_folder import conf_folder
from codetr.errors import UserError
from codetr.training.evaluate import evaluate

CONF = conf_folder()
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


def composed(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, ["paths.run_dir=x", *overrides])


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_is_known_to_evaluation(experiment: str) -> None:
    """Composing fails where it chooses from a group, or sets a key, that conf/eval.yaml lacks."""
    cfg = composed("eval", "checkpoint=official:x", f"experiment={experiment}")
    assert cfg.model.detector._target_
    assert cfg.data._target_
    assert "one_to_one" in cfg.scheme


def test_classes_are_matched_by_name_and_have_the_ids_of_the_data() -> None:
    model = ClassList(names=("a", "b", "c", "d"), category_ids=(1, 2, 3, 4))
    data = ClassList(names=("c", "a"), category_ids=(0, 4))
    changed = with_ids_of(model, data, Path("x"))
    assert changed == ClassList(names=model.names, category_ids=(4, 5, 0, 6))
    same = ClassList(names=("b", "d"), category_ids=(2, 4))
    assert with_ids_of(model, same, Path("x")) == model
    twice = ClassList(names=("a", "a"), category_ids=(1, 2))
    assert with_ids_of(twice, twice, Path("x")) == twice
    moved = ClassList(names=("a", "a"), category_ids=(0, 1))
    one = ClassList(names=("a",), category_ids=(0,))
    for own, given in ((twice, moved), (model, moved), (twice, one)):
        with pytest.raises(UserError, match="x: several classes are called 'a'"):
            with_ids_of(own, given, Path("x"))
    other = ClassList(names=("c", "e"), category_ids=(0, 4))
    with pytest.raises(UserError, match="x: the checkpoint has no class 'e'"):
        with_ids_of(model, other, Path("x"))


class Unsearched(tuple[str, ...]):
    """Names that refuse a linear search, of which there would be one per class."""

    def __contains__(self, name: object) -> bool:
        raise AssertionError

    def count(self, name: object) -> int:
        raise AssertionError


def test_classes_are_matched_without_a_search_per_class() -> None:
    model = ClassList(names=Unsearched(("a", "b")), category_ids=(0, 1))
    data = ClassList(names=Unsearched(("b", "a")), category_ids=(0, 1))
    assert with_ids_of(model, data, Path("x")).category_ids == (1, 0)


def test_own_checkpoint_and_experiment_exclude_each_other() -> None:
    cfg = composed("eval", "checkpoint=a.ckpt", f"experiment={EXPERIMENTS[0]}")
    with pytest.raises(UserError, match=r"a\.ckpt: brings its own model"):
        evaluate(cfg)


def test_official_file_needs_its_experiment(tmp_path: Path) -> None:
    cfg = composed("eval", f"checkpoint=official:{tmp_path / 'a.pth'}", "data.root=x")
    with pytest.raises(UserError, match=r"a\.pth: no such checkpoint file"):
        evaluate(cfg)
