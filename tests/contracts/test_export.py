"""A detector of each family goes through torch.export, training parts never with it."""

import pytest
import torch
from hydra.utils import instantiate
from tiny import batch, composed
from torch import Tensor, nn

from codetr.structures import Images

SMALL = (
    "model/backbone=resnet10_thin",
    "model.levels=3",
    "model.dim=32",
    "model.heads=4",
    "model.points=2",
    "model.hidden=32",
    "model.encoder_layers=1",
    "model.decoder_layers=2",
    "model.num_queries=12",
    "num_classes=3",
)


class OnTensors(nn.Module):
    """A detector between tensors: pixels, padding and sizes to logits and boxes."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, pixels: Tensor, padding: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        images = Images(pixels=pixels, padding=padding, sizes=sizes, padded_sizes=sizes)
        predictions = self.detector(images)
        return predictions.logits, predictions.boxes


@torch.no_grad()
@pytest.mark.parametrize(
    "model",
    ["co_dino", "co_deformable", "dino_4scale", "deformable_detr", "deformable_refined", "ms_detr"],
)
def test_exported_program_gives_the_same_predictions(model: str) -> None:
    cfg = composed((f"model={model}", *SMALL))
    module = OnTensors(instantiate(cfg.model.detector)).eval()
    images = batch((1, 1)).images
    inputs = (images.pixels, images.padding, images.sizes)
    program = torch.export.export(module, inputs).module()
    other = (images.pixels.flip(3), images.padding.roll(1, dims=0), images.sizes)
    for arguments in (inputs, other):
        for found, expected in zip(program(*arguments), module(*arguments), strict=True):
            torch.testing.assert_close(found, expected)
    assert not torch.allclose(program(*inputs)[0], program(*other)[0])
