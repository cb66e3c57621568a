"""Mixed supervision beside other schemes, and what it costs at inference: nothing."""

import pytest
import torch
from tiny import backward, batch, build, without_gradient
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from codetr.models.detectors.protocol import MAIN
from codetr.structures import CROSS_ATTENTION, QueryGroup, Tap
from codetr.training.losses import propose

CROSS_FIRST = "model.decoder.layer._target_=codetr.models.transformers.CrossFirstDecoderLayer"
LAYERS = {"plain": (), "cross_first": (CROSS_FIRST,)}
OTHERS = [
    ("denoising",),
    ("collaborative",),
    ("denoising", "collaborative"),
    ("denoising", "hybrid", "group", "teacher"),
]
layers = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())


@layers
@pytest.mark.parametrize("counts", [(3, 2), (0, 0)], ids=str)
@pytest.mark.parametrize("others", OTHERS, ids="+".join)
def test_all_schemes_reach_every_parameter(
    others: tuple[str, ...], counts: tuple[int, int], layer: tuple[str, ...]
) -> None:
    detector, schemes = build(("one_to_one", *others, "mixed"), ("atss",), *layer)
    assert backward(detector, schemes, batch(counts)).isfinite()
    assert without_gradient(detector, schemes) == []


@layers
@torch.no_grad()
@pytest.mark.parametrize("others", OTHERS, ids="+".join)
def test_main_predictions_and_taps_do_not_change_with_the_other_groups(
    others: tuple[str, ...], layer: tuple[str, ...]
) -> None:
    detector, schemes = build(("one_to_one", *others, "mixed"), ("atss",), *layer)
    detector.double().eval()
    schemes.double()
    data = batch((3, 2)).to(torch.float64)
    memory = detector.encode(data.images)
    (main, *extra), _ = propose(detector, schemes, memory, data)
    assert extra
    alone = detector.decode(memory, [main])[MAIN]
    together = detector.decode(memory, [main, *extra])[MAIN]
    read = [schemes["mixed"].predictions(answer) for answer in (alone, together)]
    assert not torch.allclose(read[0][-1].logits, alone.layers[-1].logits)
    for one, other in ((alone.layers, together.layers), read):
        for found, expected in zip(one, other, strict=True):
            torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-10)
            torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-10)


def flops(detector: nn.Module) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        detector.eval()(batch((1, 1)).images)
    return counter.get_total_flops()


@layers
@pytest.mark.parametrize("others", [(), *OTHERS], ids="+".join)
def test_inference_costs_and_holds_what_the_base_detector_does(
    others: tuple[str, ...], layer: tuple[str, ...]
) -> None:
    base, _ = build(("one_to_one",), ())
    mixed, schemes = build(("one_to_one", *others, "mixed"), ("atss",), *layer)
    assert mixed.state_dict().keys() == base.state_dict().keys()
    assert sum(p.numel() for p in schemes["mixed"].parameters()) > 0
    assert flops(mixed) == flops(base) > 0


def test_inference_reads_no_tap() -> None:
    detector, _ = build(("one_to_one", "mixed"), (), CROSS_FIRST)
    images = batch((1, 1)).images
    memory = detector.encode(images)
    main = QueryGroup(name=MAIN, queries=detector.queries(memory)[0])
    tap = detector.decode(memory, [main])[MAIN].taps[CROSS_ATTENTION][0]
    assert isinstance(tap, Tap)
    calls = []
    detector.head.layer(0).classify.register_forward_hook(lambda *given: calls.append(given))
    detector(images)
    assert len(calls) == 1  # the layer's own predictions
    tap.read(tap.hidden, tap.anchors)
    assert len(calls) == 2
