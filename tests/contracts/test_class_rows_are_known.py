"""Every tensor that grows with the number of classes is known to the transfer to other classes."""

import pytest
import torch
from tiny import composed, options

from codetr.checkpoints.class_rows import class_layout
from codetr.checkpoints.experiment import build_empty

MODELS = options("model")
HEADS = options("aux_heads")
SCHEMES = options("scheme")


def shapes(overrides: list[str], num_classes: int) -> dict[str, torch.Size]:
    cfg = composed([*overrides, f"num_classes={num_classes}"])
    return {name: value.shape for name, value in build_empty(cfg).state_dict().items()}


def check(overrides: list[str]) -> None:
    few, many = shapes(overrides, 7), shapes(overrides, 8)
    assert few.keys() == many.keys()
    growing = {name for name in few if few[name] != many[name]}
    assert growing
    for name in growing:
        layout = class_layout(name)
        assert layout is not None, name
        for classes, count in ((7, few[name][0]), (8, many[name][0])):
            rows = layout(classes, count)
            assert rows is not None, name
            assert len(rows) == classes
    for name in few.keys() - growing:
        layout = class_layout(name)
        assert layout is None or layout(7, few[name][0]) is None, name


@pytest.mark.parametrize("model", MODELS)
def test_in_every_model(model: str) -> None:
    check([f"model={model}", "aux_heads=[]"])


@pytest.mark.parametrize("head", HEADS)
def test_in_every_auxiliary_head(head: str) -> None:
    check([f"aux_heads=[{head}]"])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_in_every_scheme(scheme: str) -> None:
    check([f"scheme=[{scheme}]", "aux_heads=[atss]"])
