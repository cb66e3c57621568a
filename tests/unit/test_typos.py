"""Names that users of other tools know."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from codetr.conf_folder import conf_folder
from codetr.errors import UserError
from codetr.training.in_python import train
from codetr.typos import FROM_OTHER_TOOLS


def test_what_is_set_instead_of_other_tools_settings_exists() -> None:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        train = compose("train", ["callbacks=finetune"])
        predict = compose("predict")
    for other, ours in FROM_OTHER_TOOLS.items():
        parent, _, key = ours.rpartition(".")
        nodes = [OmegaConf.select(cfg, parent) if parent else cfg for cfg in (train, predict)]
        assert any(node is not None and key in node for node in nodes), other


@pytest.mark.parametrize("given", ["data=custom", {"data": "custom"}])
def test_settings_in_python_are_a_list(given: object) -> None:
    with pytest.raises(UserError, match=f"of type {type(given).__name__}: give a list of them"):
        train(given)  # type: ignore[arg-type]
