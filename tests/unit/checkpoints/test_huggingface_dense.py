"""Folders of the transformers library's Conditional DETR and DAB-DETR against the library."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from codetr.checkpoints.convert import open_checkpoint
from codetr.checkpoints.experiment import compose_experiment
from codetr.errors import UserError
from codetr.inference.predictor import build_detector
from codetr.structures import Images

SMALL = (
    "model.dim=32",
    "model.heads=2",
    "model.hidden=48",
    "model.num_queries=5",
    "model.encoder_layers=1",
    "model.decoder_layers=2",
    "model.backbone.name=resnet18",
    "model.backbone.pretrained=false",
)
KINDS = {
    "conditional_detr_r50_dc5_50e_coco": ("ConditionalDetr", "d_model"),
    "dab_detr_r50_dc5_50e_coco": ("DabDetr", "hidden_size"),
}


def saved(folder: Path, experiment: str, **more: Any) -> nn.Module:
    """A small model of the library, saved in ``folder``; every weight is random."""
    transformers = pytest.importorskip("transformers")
    name, width = KINDS[experiment]
    settings: dict[str, Any] = {
        "use_timm_backbone": True,
        "use_pretrained_backbone": False,
        "backbone": "resnet18",
        "dilation": True,
        width: 32,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "num_queries": 5,
        "id2label": {0: "cat", 1: "dog", 2: "bird"},
        "label2id": {"cat": 0, "dog": 1, "bird": 2},
    }
    config = getattr(transformers, f"{name}Config")(**settings | more)
    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, f"{name}ForObjectDetection")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)  # type: ignore[operator]
    return model


def config(experiment: str, *overrides: str) -> Any:
    return compose_experiment(experiment, 1, (*SMALL, *overrides))


@torch.no_grad()
@pytest.mark.parametrize("dilation", [True, False])
@pytest.mark.parametrize("experiment", KINDS)
def test_predictions_are_those_of_the_library(
    experiment: str, dilation: bool, tmp_path: Path
) -> None:
    model = saved(tmp_path, experiment, dilation=dilation)
    stride = f"model.backbone.model_args.output_stride={16 if dilation else 32}"
    content = open_checkpoint(f"huggingface:{tmp_path}", config(experiment, stride))
    assert content.record.classes.names == ("cat", "dog", "bird")
    detector = build_detector(content, "small")
    pixels = torch.randn(2, 3, 96, 128)
    padding = torch.zeros(2, 96, 128, dtype=torch.bool)
    padding[1, 64:] = True
    padding[1, :, 96:] = True
    pixels[1, :, padding[1]] = 0.0
    sizes = torch.tensor([[96, 128], [64, 96]])
    ours = detector(Images(pixels=pixels, padding=padding, sizes=sizes, padded_sizes=sizes))
    theirs = model(pixels, pixel_mask=(~padding).long())
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(ours.boxes, theirs.pred_boxes, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("experiment", KINDS)
def test_another_stride_is_an_error_that_says_what_to_add(experiment: str, tmp_path: Path) -> None:
    saved(tmp_path, experiment, dilation=False)
    with pytest.raises(UserError, match=r"add model\.backbone\.model_args\.output_stride=32$"):
        open_checkpoint(f"huggingface:{tmp_path}", config(experiment))
