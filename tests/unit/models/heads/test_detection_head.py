import pytest
import torch
from torch import nn
from torch.testing import assert_close

from codetr.models.heads import DetectionHead


@pytest.mark.parametrize("two_stage", [True, False])
def test_one_pair_of_embeddings_per_layer_and_nothing_shared(two_stage: bool) -> None:
    head = DetectionHead(num_classes=5, dim=8, num_layers=3, two_stage=two_stage)
    count = 3 + two_stage
    assert len(head.classify) == len(head.regress) == count
    assert (head.num_classes, head.num_layers) == (5, 3)
    pointers = [p.data_ptr() for p in head.parameters()]
    assert len(set(pointers)) == len(pointers) == count * (2 + 6)
    hidden = torch.randn(2, 7, 8)
    assert head.classify[0](hidden).shape == (2, 7, 5)
    assert head.regress[0](hidden).shape == (2, 7, 4)


def test_starts_at_prior_probability_and_at_the_anchors() -> None:
    head = DetectionHead(num_classes=5, dim=8, num_layers=2)
    for classify, regress in zip(head.classify, head.regress, strict=True):
        assert_close(classify.bias.sigmoid(), torch.full((5,), 0.01))
        assert not regress(torch.randn(4, 8)).any()
        assert isinstance(regress[-1], nn.Linear)
        assert regress[0].weight.any()
