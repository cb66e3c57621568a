"""Attention layers against torch's own, and by the laws of deformable attention."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import codetr.models.layers.attention as attention_module
from codetr.models.layers import DeformableAttention, SelfAttention

DOUBLE = torch.float64
DIM, HEADS, POINTS = 16, 4, 2
SHAPES = ((4, 6), (2, 3))
TOKENS = sum(h * w for h, w in SHAPES)


def perturbed(module: nn.Module) -> nn.Module:
    """In float64, with no parameter at a special value."""
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return module


@pytest.mark.parametrize("masked", [False, True])
def test_self_attention_equals_torch(masked: bool) -> None:
    ours = perturbed(SelfAttention(DIM, HEADS))
    theirs = nn.MultiheadAttention(DIM, HEADS, batch_first=True, dtype=DOUBLE)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.in_proj.weight,
            "in_proj_bias": ours.in_proj.bias,
            "out_proj.weight": ours.out_proj.weight,
            "out_proj.bias": ours.out_proj.bias,
        }
    )
    x, position = torch.randn(2, 2, 5, DIM, dtype=DOUBLE)
    allowed = (torch.rand(5, 5) < 0.5) | torch.eye(5, dtype=torch.bool) if masked else None
    blocked = None if allowed is None else ~allowed
    expected, _ = theirs(x + position, x + position, x, attn_mask=blocked)
    assert_close(ours(x, position, allowed), x + expected)


def test_heads_that_do_not_divide_the_width_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"model\.dim=10 must be a multiple of model\.heads=4"):
        SelfAttention(10, 4)


def deformable_inputs(coordinates: int, queries: int = 5) -> dict[str, object]:
    return {
        "x": torch.randn(2, queries, DIM, dtype=DOUBLE),
        "position": torch.randn(2, queries, DIM, dtype=DOUBLE),
        "references": torch.rand(2, queries, len(SHAPES), coordinates, dtype=DOUBLE),
        "tokens": torch.randn(2, TOKENS, DIM, dtype=DOUBLE),
        "padding": torch.rand(2, TOKENS) < 0.3,
        "shapes": SHAPES,
    }


def run(layer: DeformableAttention, inputs: dict[str, object]) -> Tensor:
    """The layer on ``deformable_inputs``."""
    others = {key: value for key, value in inputs.items() if key != "references"}
    return layer(**others, frame=layer.frame(inputs["references"], inputs["shapes"]))


def deformable() -> DeformableAttention:
    return perturbed(DeformableAttention(DIM, HEADS, len(SHAPES), POINTS))


def test_centres_count_cells_and_boxes_half_their_size_over_points() -> None:
    """A box of 2 * points cells per axis turns relative offsets into whole cells."""
    layer, inputs = deformable(), deformable_inputs(2)
    cells = torch.tensor([(w, h) for h, w in SHAPES], dtype=DOUBLE)
    sizes = (2 * POINTS / cells).expand(2, 5, -1, -1)
    boxes = torch.cat([inputs["references"], sizes], dim=-1)
    assert_close(run(layer, inputs), run(layer, {**inputs, "references": boxes}))


def test_offsets_of_a_box_scale_with_the_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locations are centre + offset / points * size / 2 (Deformable DETR, appendix A.4)."""
    seen: list[Tensor] = []

    def spy(value: Tensor, shapes: object, locations: Tensor, weights: Tensor) -> Tensor:
        seen.append(locations)
        return value.new_zeros(*locations.shape[:2], DIM)

    monkeypatch.setattr(attention_module, "multi_scale_deformable_attention", spy)
    layer, inputs = deformable(), deformable_inputs(4)
    run(layer, inputs)
    offsets = layer.sampling_offsets(inputs["x"] + inputs["position"])
    offsets = offsets.view(2, 5, HEADS, len(SHAPES), POINTS, 2)
    centre, size = inputs["references"][:, :, None, :, None].split(2, dim=-1)
    assert_close(seen[0], centre + offsets * size / (2 * POINTS))


def test_padded_tokens_have_no_effect() -> None:
    layer, inputs = deformable(), deformable_inputs(4)
    noise = torch.randn(2, TOKENS, DIM, dtype=DOUBLE)
    elsewhere = inputs["tokens"] + noise * inputs["padding"][..., None]
    changed = inputs["tokens"] + noise * ~inputs["padding"][..., None]
    expected = run(layer, inputs)
    assert_close(run(layer, {**inputs, "tokens": elsewhere}), expected)
    assert not torch.allclose(run(layer, {**inputs, "tokens": changed}), expected)


def test_equal_tokens_come_back_as_the_projected_token() -> None:
    """Weights sum to one over levels and points, so a constant map is its own average."""
    layer, inputs = deformable(), deformable_inputs(4)
    token = torch.randn(DIM, dtype=DOUBLE)
    inputs |= {
        "tokens": token.expand(2, TOKENS, DIM),
        "padding": torch.zeros(2, TOKENS, dtype=torch.bool),
        "references": torch.tensor([0.5, 0.5, 1e-3, 1e-3], dtype=DOUBLE).expand(2, 5, 2, 4),
    }
    expected = inputs["x"] + layer.output_proj(layer.value_proj(token))
    assert_close(run(layer, inputs), expected)


def test_offsets_start_along_one_direction_per_head_in_steps() -> None:
    layer = DeformableAttention(DIM, 4, len(SHAPES), 3)
    assert not layer.sampling_offsets.weight.any()
    offsets = layer.sampling_offsets.bias.view(4, len(SHAPES), 3, 2)
    directions = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    steps = torch.tensor([1.0, 2, 3])
    expected = (directions[:, None] * steps[:, None])[:, None].expand_as(offsets)
    assert_close(offsets, expected, atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("coordinates", [2, 4])
def test_locations_are_computed_in_float32_under_autocast(
    coordinates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = attention_module.multi_scale_deformable_attention, []

    def spy(value: Tensor, shapes: object, locations: Tensor, weights: Tensor) -> Tensor:
        seen.extend([value, locations, weights])
        return real(value, shapes, locations, weights)

    monkeypatch.setattr(attention_module, "multi_scale_deformable_attention", spy)
    layer = deformable().float()
    inputs = deformable_inputs(coordinates)
    inputs = {k: v.float() if k not in ("padding", "shapes") else v for k, v in inputs.items()}
    with torch.autocast("cpu", torch.bfloat16):
        run(layer, inputs)
        offsets = layer.sampling_offsets(inputs["x"] + inputs["position"])
    value, locations, weights = seen
    assert (value.dtype, offsets.dtype) == (torch.bfloat16, torch.bfloat16)
    assert (locations.dtype, weights.dtype) == (torch.float32, torch.float32)
    offsets = offsets.float().view(2, 5, HEADS, len(SHAPES), POINTS, 2)
    references = inputs["references"][:, :, None, :, None]
    centre, size = references[..., :2], references[..., 2:]
    if coordinates == 2:
        cells = torch.tensor([(w, h) for h, w in SHAPES], dtype=torch.float32)
        size = 2 * POINTS / cells[:, None]
    assert_close(locations, centre + offsets * size / (2 * POINTS), rtol=0, atol=1e-6)
