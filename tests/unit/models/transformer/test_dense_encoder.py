"""The dense encoder against torch's own attention, and what padding may not do."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from codetr.errors import UserError
from codetr.models.layers import ScaleMlp, sine_tokens
from codetr.models.transformers import DenseEncoder, DenseEncoderLayer
from codetr.structures import Pyramid

DIM, HEADS, SHAPE = 16, 2, (3, 4)


def encoder(scaled: bool = False, layers: int = 1) -> DenseEncoder:
    torch.manual_seed(0)

    def layer() -> DenseEncoderLayer:
        return DenseEncoderLayer(DIM, HEADS, 24, activation=nn.PReLU)

    scale = ScaleMlp(DIM) if scaled else None
    return DenseEncoder(layer, layers, temperature=20.0, position_scale=scale).double()


def pyramid(*shapes: tuple[int, int]) -> Pyramid:
    maps = tuple(torch.randn(2, DIM, *shape, dtype=torch.float64) for shape in shapes)
    return Pyramid(maps=maps, strides=(16,) * len(maps))


def padding() -> torch.Tensor:
    """The second image ends before the last column of cells."""
    void = torch.zeros(2, 48, 64, dtype=torch.bool)
    void[1, :, 48:] = True
    return void


@pytest.mark.parametrize("scaled", [False, True])
def test_a_layer_equals_torch(scaled: bool) -> None:
    ours = encoder(scaled)
    (layer,) = ours.layers
    inputs = pyramid(SHAPE)
    memory = ours(inputs, padding())
    attention = nn.MultiheadAttention(DIM, HEADS, batch_first=True).double()
    with torch.no_grad():
        attention.in_proj_weight.copy_(layer.attention.in_proj.weight)
        attention.in_proj_bias.copy_(layer.attention.in_proj.bias)
        attention.out_proj.load_state_dict(layer.attention.out_proj.state_dict())
    tokens = inputs.maps[0].flatten(2).mT
    void = torch.zeros(2, *SHAPE, dtype=torch.bool)
    void[1, :, 3:] = True
    position = sine_tokens((void,), DIM, 20.0, 0.0, tokens)
    scaled_position = position * (ours.position_scale(tokens) if ours.position_scale else 1)
    key = tokens + scaled_position
    found, _ = attention(key, key, tokens, key_padding_mask=void.flatten(1))
    x = layer.attention_norm(tokens + found)
    hidden = layer.feed_forward.activation(layer.feed_forward.expand(x))
    assert_close(memory.tokens, layer.feed_forward_norm(x + layer.feed_forward.contract(hidden)))
    assert memory.position is not None
    assert_close(memory.position, position)  # as the decoder needs it: not scaled
    assert_close(memory.padding, void.flatten(1))
    assert_close(memory.valid_ratios[:, 0], torch.tensor([[1, 1], [0.75, 1]]).double())


def test_padding_does_not_reach_the_image() -> None:
    ours, inputs = encoder(layers=2), pyramid(SHAPE)
    other = inputs.maps[0].clone()
    other[1, ..., 3:] += 1
    before = ours(inputs, padding())
    after = ours(Pyramid(maps=(other,), strides=(16,)), padding())
    kept = ~before.padding[..., None]
    assert_close(before.tokens * kept, after.tokens * kept)
    assert not torch.equal(before.tokens, after.tokens)


def test_several_maps_are_an_error() -> None:
    with pytest.raises(UserError, match="takes one map, and the neck gives 2"):
        encoder()(pyramid(SHAPE, (2, 2)), padding())
