"""What is said of a run that is continued with other settings, or cannot find all objects."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from codetr.training.run_facts import Continued, warn_of_crowded_images


def test_settings_that_differ_from_the_resumed_run_are_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = Continued({"images per step": 2, "learning rate": 2e-5, "devices": 1, "gone": 0})
    now = Continued({"images per step": 16, "learning rate": 1.6e-3, "devices": 1, "new": 3})
    now.load_state_dict(before.state_dict())
    (message,) = caplog.messages
    assert "images per step: 2, now 16; learning rate: 2e-05, now 0.0016" in message
    assert "devices" not in message
    caplog.clear()
    now.load_state_dict(now.state_dict())
    assert not caplog.messages


@pytest.mark.parametrize(
    ("queries", "patterns", "warned"),
    [(2, 0, True), (3, 0, False), (None, 0, False), (1, 2, True), (1, 3, False)],
)
def test_images_with_more_objects_than_queries_are_warned_of(
    queries: int | None, patterns: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    annotations = SimpleNamespace(
        image_of_box=torch.tensor([0, 1, 1, 1, 1]),
        usable=torch.tensor([True, True, True, True, False]),
        file_names=("a.png", "b.png"),
    )
    source = SimpleNamespace(annotations=annotations)
    data: Any = SimpleNamespace(train_dataset=SimpleNamespace(source=source))
    cfg = OmegaConf.create({"model": {"num_queries": queries, "num_patterns": patterns}})
    with caplog.at_level(logging.WARNING):
        warn_of_crowded_images(cfg, data)
    assert (["b.png has 3" in m for m in caplog.messages] == [True]) == warned
    assert bool(caplog.messages) == warned
