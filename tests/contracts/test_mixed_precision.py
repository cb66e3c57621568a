"""Under bfloat16, what decides and what is measured stays in float32."""

from unittest import mock

import pytest
import torch
from tiny import batch, build

from codetr.loss_terms import total_loss
from codetr.models.layers import attention
from codetr.supervision.assigners import HungarianMatcher
from codetr.training.losses import training_losses

CO_DINO = ("one_to_one", "denoising", "collaborative")


@pytest.mark.parametrize("heads", [("atss", "rcnn"), ("fcos", "retinanet"), ("gfl", "paa")])
def test_assignment_locations_and_losses_stay_in_float32(heads: tuple[str, str]) -> None:
    detector, schemes = build(CO_DINO, heads)
    data, seen = batch((3, 2)), {"costs": set(), "locations": set(), "values": set()}
    tables, sample = HungarianMatcher.tables, attention.multi_scale_deformable_attention

    def spy_tables(self, *arguments):
        found = tables(self, *arguments)
        seen["costs"].add(found.costs.dtype)
        return found

    def spy_sample(value, shapes, locations, weights):
        seen["values"].add(value.dtype)
        seen["locations"] |= {locations.dtype, weights.dtype}
        return sample(value, shapes, locations, weights)

    def step():
        torch.manual_seed(0)  # the same draws
        return training_losses(detector, schemes, data)

    exact = step()
    with (
        mock.patch.object(HungarianMatcher, "tables", spy_tables),
        mock.patch.object(attention, "multi_scale_deformable_attention", spy_sample),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        rough = step()
    assert seen["values"] == {torch.bfloat16}, "the network itself runs in bfloat16"
    assert seen["costs"] == seen["locations"] == {torch.float32}
    assert rough.keys() == exact.keys()
    for name, term in rough.items():
        assert term.value.dtype == torch.float32, name
    total, reference = total_loss(rough), total_loss(exact)
    torch.testing.assert_close(total, reference, rtol=0.05, atol=0)
    total.backward()
