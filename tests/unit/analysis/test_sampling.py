"""Where queries look, with points set by hand."""

import pytest
import torch
from torch import nn

from codetr.analysis.sampling import (
    Samples,
    attention_map,
    cell_weights,
    record_samples,
    require_samples,
    share_inside,
)
from codetr.errors import UserError
from codetr.models.layers import DeformableAttention
from codetr.models.ops.msda_reference import sample_levels

SHAPES = ((4, 6), (2, 3))


def by_hand(points: list[list[float]], weights: list[float]) -> Samples:
    """One query and head, on two levels with as many points each."""
    locations = torch.tensor(points).view(1, 1, 1, 2, -1, 2)
    return Samples(locations, torch.tensor(weights).view(1, 1, 1, 2, -1), SHAPES)


def test_a_point_in_the_middle_of_a_cell_gives_it_everything() -> None:
    # column 3 of 6 and row 1 of 4; column 0 of 3 and row 1 of 2
    fine, coarse = cell_weights(by_hand([[3.5 / 6, 1.5 / 4], [0.5 / 3, 1.5 / 2]], [0.75, 0.25]))
    assert fine[1, 3].item() == pytest.approx(0.75, abs=1e-6)
    assert coarse[1, 0].item() == pytest.approx(0.25, abs=1e-6)
    assert fine.sum().item() + coarse.sum().item() == pytest.approx(1.0, abs=1e-6)


def test_a_point_between_four_cells_gives_each_a_quarter() -> None:
    fine, _ = cell_weights(by_hand([[3 / 6, 2 / 4], [0.5, 0.5]], [1.0, 0.0]))
    assert torch.allclose(fine[1:3, 2:4], torch.full((2, 2), 0.25), atol=1e-6)
    assert fine.sum().item() == pytest.approx(1.0)


def test_what_falls_beside_the_map_is_lost() -> None:
    fine, coarse = cell_weights(by_hand([[0.0, 1.5 / 4], [2.0, 0.5]], [0.5, 0.5]))
    assert fine.sum().item() == pytest.approx(0.25)
    assert coarse.sum().item() == 0.0


def test_cells_weigh_what_the_attention_reads_of_them() -> None:
    torch.manual_seed(0)
    locations = torch.rand(1, 3, 2, 2, 4, 2) * 1.4 - 0.2
    weights = torch.rand(1, 3, 2, 2, 4).flatten(3).softmax(-1).view(1, 3, 2, 2, 4)
    value = torch.rand(1, 30, 1, 5)
    read = sample_levels(value.expand(-1, -1, 2, -1), SHAPES, locations, weights)
    cells = torch.cat([m.flatten() for m in cell_weights(Samples(locations, weights, SHAPES))])
    assert torch.allclose(cells @ value[0, :, 0], read.reshape(-1, 5).sum(0), atol=1e-5)


def test_the_map_is_highest_where_the_points_are() -> None:
    found = attention_map(by_hand([[3.5 / 6, 1.5 / 4]] * 2, [0.5, 0.5]), (8, 12), (8, 11))
    assert found.shape == (8, 11)
    assert found.max() == 1.0
    assert divmod(int(found.argmax()), 11)[1] in (6, 7)


def test_the_share_inside_a_box_is_of_weights() -> None:
    samples = by_hand([[0.5, 0.5], [0.9, 0.9]], [0.7, 0.3])
    inside = share_inside(samples, torch.tensor([[0.4, 0.4, 0.6, 0.6]]))
    assert inside.tolist() == pytest.approx([0.7])


class Looking(nn.Module):
    """Two layers that look."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DeformableAttention(8, 2, 2, 3) for _ in range(2))

    def forward(self, x: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        tokens, void = torch.rand(1, 30, 8), torch.zeros(1, 30, dtype=torch.bool)
        for layer in self.layers:
            frame = layer.frame(references, SHAPES)
            x = layer(x, torch.zeros_like(x), frame, tokens, void, SHAPES)
        return x


def test_layers_are_watched_in_their_order_and_only_for_a_while() -> None:
    module, x = Looking(), torch.rand(1, 4, 8)
    references = torch.full((1, 4, 2, 2), 0.25)
    with torch.no_grad():
        for number, layer in enumerate(module.layers):
            layer.sampling_offsets.bias.fill_(number)
        with record_samples(module) as seen:
            module(x, references)
        module(x, references)
    first, second = require_samples(seen, "a.ckpt")
    assert torch.allclose(first.locations, torch.tensor(0.25))
    cell = torch.tensor([[1 / 6, 1 / 4], [1 / 3, 1 / 2]])[:, None]
    assert torch.allclose(second.locations - 0.25, cell.expand(1, 4, 2, 2, 3, 2), atol=1e-6)
    assert torch.allclose(first.weights, torch.tensor(1 / 6))


def test_a_decoder_that_does_not_look_so_is_named() -> None:
    with record_samples(nn.Linear(2, 2)) as seen:
        pass
    with pytest.raises(UserError, match=r"^a\.ckpt: .*no deformable attention"):
        require_samples(seen, "a.ckpt")
