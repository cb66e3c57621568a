"""What every file in conf/scheme owes, whatever it is, with any auxiliary head."""

import pytest
import torch
from tiny import backward, batch, build, options, without_gradient

from codetr.models.detectors.protocol import MAIN
from codetr.training.losses import propose

BASE = "one_to_one"
SCHEMES = [(BASE, s) if s != BASE else (BASE,) for s in options("scheme")]
HEADS = [(h,) for h in options("aux_heads")]
PARTS = [(s, ("atss",)) for s in SCHEMES] + [((BASE, "collaborative"), h) for h in HEADS]
BOXES = [(3, 2), (3, 0), (0, 0), (1, 1), (300, 5)]


def name(parts: object) -> str:
    return "+".join(parts) if isinstance(parts, tuple) else str(parts)


@pytest.mark.parametrize("scheme", SCHEMES, ids=name)
@pytest.mark.parametrize("counts", BOXES, ids=str)
def test_every_scheme_reaches_every_parameter(
    scheme: tuple[str, ...], counts: tuple[int, ...]
) -> None:
    detector, schemes = build(scheme, ("atss",))
    assert backward(detector, schemes, batch(counts)).isfinite()
    assert without_gradient(detector, schemes) == []


@pytest.mark.parametrize(("scheme", "heads"), PARTS, ids=name)
def test_main_group_is_unaffected_and_one_pass_equals_several(
    scheme: tuple[str, ...], heads: tuple[str, ...]
) -> None:
    detector, schemes = build(scheme, heads)
    detector.double().eval()
    schemes.double()
    data = batch((3, 2))
    data = data.to(torch.float64)
    with torch.no_grad():
        memory = detector.encode(data.images)
        groups, _ = propose(detector, schemes, memory, data)
        assert any(part.adds_groups for part in schemes.values()) == (len(groups) > 1)
        alone = detector.decode(memory, groups[:1])[MAIN]
        together = detector.decode(memory, groups)
        detector.one_pass = False
        apart = detector.decode(memory, groups)
    for one, other in zip(alone.layers, together[MAIN].layers, strict=True):
        torch.testing.assert_close(one.logits, other.logits, rtol=0, atol=1e-10)
        torch.testing.assert_close(one.boxes, other.boxes, rtol=0, atol=1e-10)
    assert set(together) == set(apart) == {group.name for group in groups}
    for key, decoded in together.items():
        for one, other in zip(decoded.layers, apart[key].layers, strict=True):
            torch.testing.assert_close(one.logits, other.logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scheme", SCHEMES, ids=name)
def test_inference_needs_the_detector_alone(scheme: tuple[str, ...]) -> None:
    torch.manual_seed(3)
    with_scheme, _ = build(scheme, ("atss",))
    torch.manual_seed(3)
    base, _ = build((BASE,), ())
    assert with_scheme.state_dict().keys() == base.state_dict().keys()


def test_k_zero_adds_nothing() -> None:
    _, schemes = build((BASE, "collaborative"), ())
    assert sum(p.numel() for p in schemes.parameters()) == 0


def test_checkpointed_encoder_gives_the_same_gradients() -> None:
    torch.manual_seed(0)
    plain = build((BASE,), (), "model.checkpointed=0")
    torch.manual_seed(0)
    thrifty = build((BASE,), (), "model.checkpointed=1")
    data = batch((3, 2))
    assert backward(*plain, data) == backward(*thrifty, data)
    for one, other in zip(plain[0].parameters(), thrifty[0].parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_bf16_autocast_trains_with_finite_gradients() -> None:
    detector, schemes = build((BASE, "denoising", "collaborative"), ("atss", "rcnn"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = backward(detector, schemes, batch((3, 2)))
    assert total.isfinite()
    assert without_gradient(detector, schemes) == []
