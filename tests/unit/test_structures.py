"""The values move, map and sum as they promise."""

from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import Tensor

from codetr.structures import (
    Assignment,
    Batch,
    Decoded,
    ImageInfo,
    Images,
    Memory,
    Predictions,
    Pyramid,
    Queries,
    QueryGroup,
    Targets,
)


def targets(count: int) -> Targets:
    return Targets(
        boxes=torch.rand(count, 4),
        labels=torch.arange(count),
        weights=torch.ones(count),
        size=torch.tensor([40.0, 30.0]),
    )


def batch() -> Batch:
    sizes = torch.tensor([[30, 40], [20, 25]])
    images = Images(
        pixels=torch.rand(2, 3, 30, 40),
        padding=torch.zeros(2, 30, 40, dtype=torch.bool),
        sizes=sizes,
        padded_sizes=sizes,
    )
    return Batch(
        images=images,
        targets=(targets(2), targets(0)),
        teachers=((targets(1), targets(3)),),
        infos=(ImageInfo(image_id=7, original_size=(60, 80), scale=(0.5, 0.5), path="a.png"),) * 2,
    )


def decoded() -> Decoded:
    layer = Predictions(logits=torch.rand(1, 2, 3), boxes=torch.rand(1, 2, 4))
    queries = Queries(content=torch.rand(1, 2, 8), anchors=torch.rand(1, 2, 4), proposals=layer)
    pairs = torch.zeros(1, dtype=torch.int64)
    assignment = Assignment(image=pairs, query=pairs, target=pairs)
    group = QueryGroup(
        name="g", queries=queries, assignment=assignment, sees=("main",), targets=(targets(1),)
    )
    return Decoded(layers=(layer, layer), group=group, taps={"extra": (layer,)})


def tensors(value: object) -> list[Tensor]:
    """Every tensor inside, found by mapping."""
    found: list[Tensor] = []
    value.map(lambda tensor: found.append(tensor) or tensor)
    return found


def test_map_reaches_every_tensor_and_leaves_the_rest() -> None:
    original = batch()
    # images 4, targets 2 x 4, teachers 2 x 4
    assert len(tensors(original)) == 20
    # 2 layers and 1 tap x 2, queries 2, proposals 2, assignment 3, targets 4
    assert len(tensors(decoded())) == 17
    changed = original.map(torch.zeros_like)
    assert changed.infos == original.infos
    assert all(not tensor.any() for tensor in tensors(changed))
    assert original.images.pixels.any(), "the original is not edited"
    assert decoded().map(torch.zeros_like).group.sees == ("main",)


def test_to_moves_everything_and_casts_floating_point_alone() -> None:
    moved = batch().to("meta")
    assert {tensor.device.type for tensor in tensors(moved)} == {"meta"}
    for cast in (batch().to(torch.float64), batch().to(dtype=torch.float64)):
        assert cast.targets[0].boxes.dtype == torch.float64
        assert cast.teachers[0][1].weights.dtype == torch.float64
        assert cast.targets[0].labels.dtype == torch.int64
        assert cast.images.padding.dtype == torch.bool
    both = batch().to("meta", torch.float64, non_blocking=True)
    assert (both.images.sizes.device.type, both.images.sizes.dtype) == ("meta", torch.int64)
    assert (both.images.pixels.device.type, both.images.pixels.dtype) == ("meta", torch.float64)


def test_pin_memory_pins_every_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Tensor] = []
    # Page-locked memory needs an accelerator: record who was asked.
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: pinned.append(self) or self.clone())
    copy = batch().pin_memory()
    assert len(pinned) == len(tensors(copy)) == 20


def test_values_are_frozen_and_their_fields_named() -> None:
    value = targets(1)
    with pytest.raises(FrozenInstanceError):
        value.boxes = torch.zeros(1, 4)
    with pytest.raises(TypeError):
        Predictions(torch.zeros(1, 1, 1), torch.zeros(1, 1, 4))


def test_lengths_count_what_the_name_says() -> None:
    assert len(batch()) == len(batch().images) == 2
    assert [len(t) for t in batch().targets] == [2, 0]
    assert len(decoded().group) == 2
    assert targets(1).size_whwh.tolist() == [40, 30, 40, 30]


def test_proposals_are_those_of_the_group() -> None:
    value = decoded()
    assert value.proposals is value.group.queries.proposals


def test_pyramid_cuts_the_tokens_where_they_were_joined() -> None:
    maps = (torch.rand(2, 8, 4, 6), torch.rand(2, 8, 2, 3), torch.rand(2, 8, 1, 2))
    shapes = tuple((m.shape[2], m.shape[3]) for m in maps)
    tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)
    memory = Memory(
        tokens=tokens,
        padding=torch.zeros(tokens.shape[:2], dtype=torch.bool),
        shapes=shapes,
        strides=(8, 16, 32),
        valid_ratios=torch.ones(2, 3, 2),
    )
    pyramid = memory.pyramid()
    assert pyramid.shapes == shapes
    assert pyramid.strides == (8, 16, 32)
    assert all(torch.equal(a, b) for a, b in zip(pyramid.maps, maps, strict=True))


def test_pinned_memory_is_asked_for_every_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinning itself needs CUDA."""
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self + 1)
    before = Predictions(logits=torch.zeros(1, 2, 3), boxes=torch.zeros(1, 2, 4))
    after = before.pin_memory()
    assert torch.equal(after.logits, before.logits + 1)
    assert torch.equal(after.boxes, before.boxes + 1)


def test_tokens_are_the_cells_of_all_levels_row_by_row() -> None:
    maps = (torch.rand(2, 5, 3, 4), torch.rand(2, 5, 2, 2))
    tokens = Pyramid(maps=maps, strides=(8, 16)).tokens()
    assert tokens.shape == (2, 16, 5)
    torch.testing.assert_close(tokens[1, 4 * 2 + 3], maps[0][1, :, 2, 3])
    torch.testing.assert_close(tokens[0, 12 + 2], maps[1][0, :, 1, 0])
