"""Co-DETR on further detectors: without auxiliary heads it is the baseline, number by number."""

import pytest
import torch
from test_experiment_training import build, recipe, sizes
from tiny import backward, batch, without_gradient
from torch import nn

from codetr.models.detectors.protocol import MAIN
from codetr.training.losses import propose, training_losses

EXPERIMENTS = (
    "co_deformable_detr_one_stage_r50_1x_coco",
    "co_conditional_detr_r50_c5_3x_coco",
    "co_dab_detr_r50_c5_3x_coco",
)


def made(experiment: str, *overrides: str) -> tuple[nn.Module, nn.ModuleDict]:
    torch.manual_seed(0)
    return build(recipe(experiment, *sizes(f"experiment={experiment}"), *overrides))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_without_heads_it_is_the_baseline(experiment: str) -> None:
    none = made(experiment, "aux_heads=[]")
    baseline = made(experiment, "scheme=[one_to_one]", "aux_heads=[]")
    assert list(none[1]["collaborative"].parameters()) == []
    for name, value in baseline[0].state_dict().items():
        assert torch.equal(none[0].state_dict()[name], value), name
    totals = []
    for detector, schemes in (none, baseline):
        torch.manual_seed(1)
        totals.append(backward(detector, schemes, batch((3, 2))))
    assert torch.equal(*totals)
    losses = [set(training_losses(*parts, batch((3, 2)))) for parts in (none, baseline)]  # type: ignore[arg-type]
    assert losses[0] == losses[1]
    for one, other in zip(none[0].parameters(), baseline[0].parameters(), strict=True):
        if one.grad is not None and other.grad is not None:
            assert torch.equal(one.grad, other.grad)
        assert (one.grad is None) == (other.grad is None)


@pytest.mark.parametrize("counts", [(3, 2), (0, 0)], ids=str)
@pytest.mark.parametrize("heads", ["[atss]", "[atss,rcnn]"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_with_heads_every_parameter_is_reached(
    experiment: str, heads: str, counts: tuple[int, int]
) -> None:
    detector, schemes = made(experiment, f"aux_heads={heads}")
    assert backward(detector, schemes, batch(counts)).isfinite()
    assert without_gradient(detector, schemes) == []


@torch.no_grad()
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_positive_queries_start_where_the_models_own_do_and_do_not_disturb_them(
    experiment: str,
) -> None:
    detector, schemes = made(experiment)
    detector.double().eval()
    schemes.double()
    data = batch((3, 2)).to(torch.float64)
    memory = detector.encode(data.images)
    (main, *positive), _ = propose(detector, schemes, memory, data)
    assert [group.name for group in positive] == ["positive_atss", "positive_rcnn"]
    for group in positive:
        assert group.queries.anchors.shape[-1] == main.queries.anchors.shape[-1]
    together = detector.decode(memory, [main, *positive])[MAIN].layers[-1]
    alone = detector.decode(memory, [main])[MAIN].layers[-1]
    torch.testing.assert_close(together.logits, alone.logits, rtol=0, atol=1e-10)
    torch.testing.assert_close(together.boxes, alone.boxes, rtol=0, atol=1e-10)
