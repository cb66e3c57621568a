import pytest
import torch
from safetensors.torch import save
from torch.testing import assert_close

from codetr.errors import UserError
from codetr.models.heads import DetectionHead, TiedDetectionHead

LAYERS = 3


def made(two_stage: bool = True, size_logit: float = 0.0) -> TiedDetectionHead:
    return TiedDetectionHead(5, 8, LAYERS, two_stage, size_logit)


def test_decoder_layers_share_one_pair_and_proposals_have_their_own() -> None:
    head = made()
    first = head.layer(0)
    pairs = (head.layer(LAYERS - 1), first, head.proposals)
    for one, shared, own in zip(*(pair[:2] for pair in pairs), strict=True):
        assert one is shared
        assert own is not shared
    single = DetectionHead(5, 8, num_layers=1, two_stage=True)
    assert sum(p.numel() for p in head.parameters()) == sum(p.numel() for p in single.parameters())
    assert (head.num_classes, head.num_layers) == (5, LAYERS)


def test_shared_weights_are_saved_once() -> None:
    state = made().state_dict()
    assert set(state) == set(DetectionHead(5, 8, num_layers=1, two_stage=True).state_dict())
    assert save(state), "safetensors refuses names that share memory"


@pytest.mark.parametrize("kind", [DetectionHead, TiedDetectionHead])
def test_no_layer_is_beyond_the_last_and_one_stage_has_no_proposals(
    kind: type[DetectionHead],
) -> None:
    head = kind(5, 8, LAYERS, two_stage=False)
    with pytest.raises(UserError, match="two_stage=true"):
        _ = head.proposals
    with pytest.raises(AssertionError):
        kind(5, 8, LAYERS).layer(LAYERS)


def test_sizes_start_where_they_are_told() -> None:
    head = made(two_stage=False, size_logit=-2.0)
    expected = torch.tensor([0.0, 0, -2, -2]).expand(4, 4)
    assert_close(head.layer(LAYERS - 1).regress(torch.randn(4, 8)), expected)
    assert not made().layer(0).regress(torch.randn(4, 8)).any()
