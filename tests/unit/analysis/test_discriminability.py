"""Maps with known curves."""

import pytest
import torch

from codetr.analysis.discriminability import (
    Discriminability,
    area,
    energy_map,
    foreground_mask,
    mean_curve,
    threshold_curve,
)
from codetr.errors import UserError
from codetr.structures import Memory

STEPS = 11


def foreground(height: int = 8, width: int = 10) -> torch.Tensor:
    return foreground_mask(torch.tensor([[2.0, 1.0, 6.0, 5.0]]), (height, width))


def memory(*maps: torch.Tensor, padding: torch.Tensor | None = None) -> Memory:
    """Of maps (C, H, W)."""
    shapes = tuple((m.shape[1], m.shape[2]) for m in maps)
    tokens = torch.cat([m.flatten(1).T for m in maps])[None]
    void = torch.zeros(tokens.shape[:2], dtype=torch.bool) if padding is None else padding
    ratios = torch.ones(1, len(maps), 2)
    strides = tuple(2**i for i in range(len(maps)))
    return Memory(tokens=tokens, padding=void, shapes=shapes, strides=strides, valid_ratios=ratios)


def test_pixels_are_inside_by_their_centres() -> None:
    found = foreground_mask(torch.tensor([[0.6, 0.0, 2.4, 1.0], [3.0, 1.0, 4.0, 2.0]]), (2, 4))
    assert found.tolist() == [[False, True, False, False], [False, False, False, True]]
    assert not foreground_mask(torch.zeros(0, 4), (2, 4)).any()


def test_the_mask_itself_has_iof_1_and_iob_0() -> None:
    mask = foreground()
    iof, iob = threshold_curve(mask.float(), mask, STEPS)
    assert iof.tolist() == [1.0] * (STEPS - 1) + [0.0]
    assert iob.tolist() == [0.0] * STEPS
    assert area(iof, iob) == 1.0


def test_its_opposite_has_area_0_and_a_constant_one_half() -> None:
    mask = foreground()
    assert area(*threshold_curve((~mask).float(), mask, STEPS)) == 0.0
    assert area(*threshold_curve(torch.full(mask.shape, 0.7), mask, STEPS)) == 0.5


def test_shares_are_counted_above_each_threshold() -> None:
    mask = torch.tensor([[True, True, True, True, False, False]])
    found = torch.tensor([[0.0, 0.25, 0.5, 1.0, 0.5, 0.75]])
    iof, iob = threshold_curve(found, mask, 5)
    assert iof.tolist() == [0.75, 0.5, 0.25, 0.25, 0.0]
    assert iob.tolist() == [1.0, 1.0, 0.5, 0.0, 0.0]


def test_the_area_is_the_chance_to_rank_foreground_higher() -> None:
    torch.manual_seed(0)
    mask, found = foreground(), torch.rand(8, 10).mul(100).round().div(100)
    pairs = found[mask][:, None] - found[~mask][None]
    chance = (pairs > 0).double().mean() + 0.5 * (pairs == 0).double().mean()
    # steps that hit the values themselves
    assert area(*threshold_curve(found.double(), mask, 1001)) == pytest.approx(chance.item())


def test_curves_are_averaged_over_the_images_that_have_any() -> None:
    one, two = torch.tensor([1.0, 0.5]), torch.tensor([0.0, 0.25])
    iof, iob, images = mean_curve([(one, two), None, (two, one)])
    assert (iof.tolist(), iob.tolist(), images) == ([0.5, 0.375], [0.5, 0.375], 2)
    assert mean_curve([None])[2] == 0


def test_energy_is_the_mean_of_levels_by_their_own_maxima() -> None:
    fine, coarse = torch.zeros(2, 4, 4), torch.zeros(2, 2, 2)
    fine[:, 1, 2] = torch.tensor([3.0, 4.0])
    coarse[0] = 7.0
    found = energy_map(memory(fine, coarse), (4, 4), (4, 4))
    expected = torch.full((4, 4), 0.5)
    expected[1, 2] = 1.0
    assert torch.equal(found, expected)


def test_padding_neither_counts_nor_is_shown() -> None:
    tokens = torch.ones(1, 4, 4)
    tokens[:, :, 2:] = 100.0
    padding = torch.zeros(4, 4, dtype=torch.bool)
    padding[:, 2:] = True
    found = energy_map(memory(tokens, padding=padding.flatten()[None]), (8, 8), (8, 4))
    assert found.shape == (8, 4)
    assert found[:, 0].eq(1.0).all()


@pytest.mark.parametrize(("given", "word"), [({"of": "neck"}, "of"), ({"steps": 1}, "steps")])
def test_mistakes_are_named(given: dict, word: str) -> None:
    with pytest.raises(UserError, match=rf"^analysis\.{word}="):
        Discriminability(**given)
