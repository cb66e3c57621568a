"""Co-DINO on a plain vision transformer, put together as its recipes do, made small and at size."""

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from tiny import backward, batch, composed, without_gradient
from torch import Tensor, nn

from codetr.models.detectors.protocol import MAIN
from codetr.supervision.aux_heads.roi_heads import ConvFcBoxHead, SharedFcBoxHead
from codetr.training.losses import propose

COCO = (
    "model=co_dino_vit",
    "aux_heads=[rcnn_4conv1fc,atss]",
    "optimizer=layer_decay",
    "callbacks=ema_exp",
    "model.backbone.pretrained=false",
)
LVIS = (
    "model=co_dino_vit",
    "model/backbone=eva02_large_lsj",
    "aux_heads=[rcnn,atss]",
    "model.num_queries=900",
    "model.backbone.pretrained=false",
)
SMALL = (
    "model.backbone.body.depth=4",
    "model.backbone.body.dim=32",
    "model.backbone.body.heads=2",
    "model.backbone.body.hidden=24",
    "model.backbone.body.positions=3",
    "model.backbone.body.window=3",
    "model.backbone.body.global_blocks=[1,3]",
    "model.dim=32",
    "model.heads=4",
    "model.points=2",
    "model.hidden=32",
    "model.encoder_layers=1",
    "model.decoder_layers=2",
    "model.num_queries=12",
    "supervision.denoising_queries=6",
    "supervision.positive_queries=10",
    "supervision.regions.fc_dim=16",
    "supervision.regions.samples=16",
    "num_classes=3",
)


def build(cfg: DictConfig) -> tuple[nn.Module, nn.ModuleDict]:
    schemes = nn.ModuleDict({name: instantiate(part) for name, part in cfg.scheme.items()})
    return instantiate(cfg.model.detector), schemes


@pytest.mark.parametrize("counts", [(3, 2), (3, 0), (0, 0)], ids=str)
def test_small_recipe_reaches_every_parameter(counts: tuple[int, int]) -> None:
    """64 pixels are 4 patches: windows of 3 must be filled up."""
    detector, schemes = build(composed((*COCO, *SMALL, "model.backbone.body.drop_path=0")))
    assert backward(detector, schemes, batch(counts)).isfinite()
    assert without_gradient(detector, schemes) == []
    assert isinstance(schemes["collaborative"].heads["rcnn"].box_head, ConvFcBoxHead)


@torch.no_grad()
def test_main_group_is_unaffected_by_training_parts() -> None:
    detector, schemes = build(composed((*COCO, *SMALL)))
    detector.double().eval()
    schemes.double()
    data = batch((3, 2)).to(torch.float64)
    memory = detector.encode(data.images)
    assert memory.shapes == ((16, 16), (8, 8), (4, 4), (2, 2), (1, 1))
    assert memory.strides == (4, 8, 16, 32, 64)
    (main, *extra), _ = propose(detector, schemes, memory, data)
    assert len(extra) == 3
    alone = detector.decode(memory, [main])[MAIN].layers[-1]
    together = detector.decode(memory, [main, *extra])[MAIN].layers[-1]
    torch.testing.assert_close(together.logits, alone.logits, rtol=0, atol=1e-10)
    torch.testing.assert_close(together.boxes, alone.boxes, rtol=0, atol=1e-10)


class OnTensors(nn.Module):
    """Backbone and neck between tensors."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.neck = detector.backbone, detector.neck

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return self.neck(self.backbone(pixels)).maps


@torch.no_grad()
def test_exported_trunk_and_neck_give_the_same_maps() -> None:
    module = OnTensors(build(composed((*COCO, *SMALL)))[0]).eval()
    pixels = torch.randn(1, 3, 64, 96)
    program = torch.export.export(module, (pixels,)).module()
    for found, expected in zip(program(-pixels), module(-pixels), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("recipe", "queries", "window", "everywhere", "rate", "head"),
    [
        (COCO, 1500, 24, [3, 7, 11, 15, 19, 23], 0.4, ConvFcBoxHead),
        (LVIS, 900, 16, [2, 5, 8, 11, 14, 17, 20, 23], 0.3, SharedFcBoxHead),
    ],
    ids=["coco", "lvis"],
)
def test_recipes_at_full_size(
    recipe: tuple[str, ...],
    queries: int,
    window: int,
    everywhere: list[int],
    rate: float,
    head: type[nn.Module],
) -> None:
    cfg = composed((*recipe, "num_classes=80"))
    with torch.device("meta"):
        detector, schemes = build(cfg)
    body = detector.backbone.body
    assert sum(p.numel() for p in body.parameters()) == 304_238_528
    assert [i for i, block in enumerate(body.blocks) if block.window == 0] == everywhere
    assert {block.window for block in body.blocks} == {0, window}
    assert body.blocks[23].drop_path.drop_prob == pytest.approx(rate)
    assert (body.checkpointed, detector.encoder.checkpointed) == (24, 6)
    assert detector.query_init.content.shape == (queries, 256)
    assert isinstance(schemes["collaborative"].heads["rcnn"].box_head, head)


def test_coco_recipe_says_what_the_official_one_says() -> None:
    cfg = composed((*COCO, "num_classes=80"))
    head = instantiate(cfg.aux_heads.rcnn)
    assert head.coder.stds == [0.05, 0.05, 0.1, 0.1]
    selection = head.rpn.inference_selection
    assert (selection.per_level, selection.limit, selection.iou) == (8000, 2000, 0.9)
    selection = head.rpn.training_selection
    assert (selection.per_level, selection.limit, selection.iou) == (4000, 1000, 0.7)
    assert (head.nms.iou, head.nms.limit) == (0.5, 1000)
    assert (head.cls_weight, head.bbox_weight, head.sampler.size) == (1, 10, 512)
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay) == (5e-5, 0.01)
    assert cfg.callbacks.ema.decay == 0.9999
    assert cfg.supervision.denoising_queries == 300
    assert list(cfg.aux_heads) == ["rcnn", "atss"]
