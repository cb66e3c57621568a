"""Positions, references and padding of the deformable encoder, and activation checkpointing."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from codetr.models.transformers import DeformableEncoder, DeformableEncoderLayer
from codetr.models.transformers.encoder import _cell_references
from codetr.structures import Memory, Pyramid

DIM = 16


def encoder(checkpointed: int = 0, layers: int = 2, levels: int = 2) -> DeformableEncoder:
    layer = partial(DeformableEncoderLayer, dim=DIM, heads=2, levels=levels, points=2, hidden=DIM)
    return DeformableEncoder(
        layer, num_layers=layers, dim=DIM, levels=levels, checkpointed=checkpointed
    ).double()


def inputs() -> tuple[Pyramid, Tensor]:
    """Maps of a (32, 48) px batch whose second image is (16, 32) px."""
    maps = (torch.randn(2, DIM, 4, 6).double(), torch.randn(2, DIM, 2, 3).double())
    padding = torch.ones(2, 32, 48, dtype=torch.bool)
    padding[0] = False
    padding[1, :16, :32] = False
    return Pyramid(maps=maps, strides=(8, 16)), padding


def test_padding_and_valid_ratios_are_those_of_each_level() -> None:
    pyramid, padding = inputs()
    memory = encoder()(pyramid, padding)
    fine, coarse = memory.padding.split([24, 6], dim=1)
    expected = torch.ones(4, 6, dtype=torch.bool)
    expected[:2, :4] = False
    assert torch.equal(fine[1].view(4, 6), expected)
    assert torch.equal(coarse[1].view(2, 3), expected[::2, ::2])
    assert not memory.padding[0].any()
    assert_close(memory.valid_ratios[0], torch.ones(2, 2, dtype=torch.float64))
    ratio = torch.tensor([2 / 3, 1 / 2], dtype=torch.float64).expand(2, 2)
    assert_close(memory.valid_ratios[1], ratio)
    assert (memory.shapes, memory.strides) == (((4, 6), (2, 3)), (8, 16))


def test_references_are_cell_centres_on_every_level() -> None:
    ratios = torch.rand(2, 2, 2, dtype=torch.float64) * 0.5 + 0.5
    references = _cell_references(((4, 6), (2, 3)), ratios)
    assert references.shape == (2, 30, 2, 2)
    own = torch.tensor([2.5 / 6, 1.5 / 4], dtype=torch.float64)  # row 1, column 2, level 0
    for image in range(2):
        for level in range(2):
            expected = own / ratios[image, 0] * ratios[image, level]
            assert_close(references[image, 1 * 6 + 2, level], expected)
    first_of_level_1 = torch.tensor([0.5 / 3, 0.5 / 2], dtype=torch.float64)
    assert_close(references[0, 24, 1], first_of_level_1)


def test_what_stands_in_the_padding_does_not_reach_the_image() -> None:
    pyramid, padding = inputs()
    model = encoder()
    memory = model(pyramid, padding)
    void = [p.view(2, 1, h, w) for p, (h, w) in zip(
        memory.padding.split([24, 6], dim=1), memory.shapes, strict=True
    )]  # fmt: skip
    noisy = Pyramid(
        maps=tuple(m + torch.randn_like(m) * v for m, v in zip(pyramid.maps, void, strict=True)),
        strides=pyramid.strides,
    )
    other = model(noisy, padding)
    valid = ~memory.padding
    assert_close(other.tokens[valid], memory.tokens[valid])
    assert not torch.allclose(other.tokens[1], memory.tokens[1])


def run(model: DeformableEncoder) -> tuple[Memory, list[Tensor]]:
    pyramid, padding = inputs()
    maps = tuple(m.requires_grad_() for m in pyramid.maps)
    memory = model(Pyramid(maps=maps, strides=pyramid.strides), padding)
    memory.tokens.square().sum().backward()
    return memory, [t.grad for t in (*maps, *model.parameters())]


@pytest.mark.parametrize("checkpointed", [1, 2])
def test_checkpointing_changes_neither_output_nor_gradients(
    checkpointed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, thrifty = encoder(), encoder(checkpointed)
    thrifty.load_state_dict(plain.state_dict())
    runs = [0]
    forward = DeformableEncoderLayer.forward

    def counted(self: DeformableEncoderLayer, *arguments: object) -> Tensor:
        runs[0] += 1
        return forward(self, *arguments)

    monkeypatch.setattr(DeformableEncoderLayer, "forward", counted)
    torch.manual_seed(1)
    expected, gradients = run(plain)
    assert runs == [2]
    torch.manual_seed(1)
    found, found_gradients = run(thrifty)
    assert runs == [2 + 2 + checkpointed], "each of them runs again in the backward pass"
    assert torch.equal(found.tokens, expected.tokens)
    for one, other in zip(found_gradients, gradients, strict=True):
        assert_close(one, other, rtol=0, atol=1e-12)


def test_a_wrong_number_of_levels_is_an_error_that_names_the_setting() -> None:
    pyramid, padding = inputs()
    with pytest.raises(ValueError, match=r"gives 2 levels.*made for 3: set model.levels"):
        encoder(levels=3)(pyramid, padding)
