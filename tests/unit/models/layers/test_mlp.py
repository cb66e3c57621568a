import torch
from torch import nn
from torch.testing import assert_close

from codetr.models.layers import FeedForward, Mlp


def test_mlp_has_relu_between_layers_and_none_at_the_end() -> None:
    mlp = Mlp(4, 5, 6, 3)
    linear = [layer for layer in mlp if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(4, 5), (5, 6), (6, 3)]
    x = torch.randn(7, 4)
    expected = linear[2](linear[1](linear[0](x).relu()).relu())
    assert_close(mlp(x), expected)
    assert expected.min() < 0


def test_feed_forward_adds_to_its_input() -> None:
    block = FeedForward(4, 8)
    x = torch.randn(2, 3, 4)
    assert_close(block(x), x + block.contract(block.expand(x).relu()))
