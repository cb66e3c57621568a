"""Our experiments against recorded runs of the official code, number for number (float64)."""

from pathlib import Path

import pytest
import torch
from official import Case, load_case, official_name, official_permutation

from codetr.checkpoints.official import rename
from codetr.detectors.protocol import MAIN
from codetr.structures import QueryGroup, total_loss
from codetr.training.losses import training_losses

pytestmark = [pytest.mark.golden]

CASES = ["co_dino_r50", "co_deformable_detr_r50", "co_deformable_detr_r50_single"]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, shared: Path) -> Case:
    return load_case(shared / "golden" / request.param)


def test_evaluation_equals_the_official_code(case: Case) -> None:
    detector = case.detector.eval()
    with torch.no_grad():
        memory = detector.encode(case.batch.images)
        queries = detector.queries(memory)
        decoded = detector.decode(memory, [QueryGroup(name=MAIN, queries=queries)])[MAIN]
    logits = torch.stack([layer.logits for layer in decoded.layers])
    boxes = torch.stack([layer.boxes for layer in decoded.layers])
    assert case.difference("eval/memory", memory.tokens) < 1e-5
    assert case.difference("eval/dec_in_reference", queries.anchors) < 1e-6
    assert case.difference("eval/all_cls_scores", logits) < 1e-5
    assert case.difference("eval/all_bbox_preds", boxes) < 1e-6


def test_training_equals_the_official_code(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randperm", official_permutation)
    case.detector.train()
    if "denoising" in case.schemes:
        monkeypatch.setattr(case.schemes["denoising"], "label_noise", 0.0)
        monkeypatch.setattr(case.schemes["denoising"], "box_noise", 0.0)
    losses = training_losses(case.detector, case.schemes, case.batch)
    total = total_loss(losses)
    total.backward()

    recorded = case.losses["losses"]
    ours = {official_name(name): float(t.value.detach()) * t.weight for name, t in losses.items()}
    assert set(ours) == {name for name in recorded if "loss" in name}
    for name, value in ours.items():
        expected = recorded[name]
        expected = sum(expected) if isinstance(expected, list) else expected
        assert value == pytest.approx(expected, rel=1e-6, abs=1e-8), name
    assert float(total.detach()) == pytest.approx(case.losses["total"], rel=1e-6)

    gradients = _gradient_norms(case)
    for name, norm in case.losses["grad_norms"].items():
        if rename(name) is not None:
            own = rename(name).format(head0="rcnn", head1="atss")
            assert gradients[own] == pytest.approx(norm, rel=1e-5, abs=1e-9), name
    everything = torch.tensor(list(gradients.values())).norm()
    assert float(everything) == pytest.approx(case.losses["total_grad_norm"], rel=1e-5)


def _gradient_norms(case: Case) -> dict[str, float]:
    norms = {}
    for prefix, module in (("detector", case.detector), ("schemes", case.schemes)):
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                norms[f"{prefix}.{name}"] = float(parameter.grad.norm())
    return norms
