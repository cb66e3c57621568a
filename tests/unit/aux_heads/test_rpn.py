"""The first stage at a few anchors against the first stage at all of them."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from codetr.aux_heads.rpn import Rpn


def gradients(rpn: Rpn, maps: tuple[Tensor, ...], value: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value, [*rpn.parameters(), *maps], allow_unused=True))


@pytest.mark.parametrize("few", [True, False])
def test_some_anchors_are_as_all_anchors_say(small_batch, few: bool) -> None:
    pyramid, batch = small_batch((2, 1))
    pyramid = pyramid.map(lambda m: m.detach().double().requires_grad_())
    rpn = Rpn(channels=32).double()
    for parameter in rpn.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    everywhere = rpn(pyramid, batch.images)
    count = everywhere.logits.shape[1]
    index = [torch.randperm(count)[: 40 if few else count] for _ in range(2)]
    some = rpn.at(pyramid, index)
    for b, chosen in enumerate(index):
        assert_close(some.logits[b], everywhere.logits[b, chosen])
        assert_close(some.deltas[b], everywhere.deltas[b, chosen])
    sparse = torch.cat(some.logits).square().sum() + torch.cat(some.deltas).cos().sum()
    dense = sum(
        everywhere.logits[b, chosen].square().sum() + everywhere.deltas[b, chosen].cos().sum()
        for b, chosen in enumerate(index)
    )
    for ours, theirs in zip(
        gradients(rpn, pyramid.maps, sparse), gradients(rpn, pyramid.maps, dense), strict=True
    ):
        assert_close(ours, theirs)


def test_no_anchor_at_all(small_batch) -> None:
    pyramid, _ = small_batch((0, 0))
    rpn = Rpn(channels=32)
    none = rpn.at(pyramid, [torch.zeros(0, dtype=torch.long)] * 2)
    assert [len(logits) for logits in none.logits] == [0, 0]
    total = torch.cat(none.logits).sum() + torch.cat(none.deltas).sum()
    for gradient in gradients(rpn, pyramid.maps, total):
        assert gradient is not None
        assert not gradient.any()
