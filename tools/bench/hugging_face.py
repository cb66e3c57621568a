"""Deformable DETR of Hugging Face's transformers, as a contestant; import it where those are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
import transformers
from omegaconf import DictConfig
from torch import Tensor, nn
from transformers import (
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DeformableDetrImageProcessor,
)

from codetr.checkpoints.experiment import compose_experiment
from tools.bench.contestant import BACKWARD_BACKBONE, BACKWARD_ENCODER, create_state
from tools.bench.part_times import Border, Recorder, watch
from tools.bench.workload import CLASSES, ModelOptions, make_batch

NAME = f"transformers {transformers.__version__}"

NOTES = (
    f"{NAME}: DeformableDetrForObjectDetection with the settings of our experiment, random "
    "weights, one grid_sample per level (custom kernels off), fused AdamW.",
    "It neither matches nor trains the encoder's proposals, which ours does: its step is less.",
)


class HuggingFace:
    """Two-stage Deformable DETR with box refinement and the sizes of ``cfg``, one of our
    configurations of the same model. Frozen are the parameters that ours freezes.
    """

    name = NAME

    def __init__(self, cfg: DictConfig, options: ModelOptions) -> None:
        self.batch, self.autocast = make_batch(options), options.autocast
        torch.manual_seed(0)
        self.model: Any = cast(Any, DeformableDetrForObjectDetection)(_config(cfg))
        self.modules: nn.Module = self.model
        self.modules.to(options.torch_device)
        for parameter in _stem_and_first_stage(self.model.model.backbone):
            parameter.requires_grad_(False)
        learned = [p for p in self.modules.parameters() if p.requires_grad]
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            learned,
            lr=cfg.optimizer.lr,
            weight_decay=cfg.optimizer.weight_decay,
            fused=True,  # as ours
        )
        create_state(self.optimizer)
        self.postprocess: Any = DeformableDetrImageProcessor().post_process_object_detection
        self.top_k = cfg.evaluation.postprocess.max_detections
        self.inputs = {
            "pixel_values": self.batch.images.pixels,
            "pixel_mask": (~self.batch.images.padding).long(),
        }
        self.labels = [{"class_labels": t.labels, "boxes": t.boxes} for t in self.batch.targets]

    def loss(self) -> Tensor:
        """See ``Contestant``."""
        self.modules.train()
        with self.autocast():
            loss: Tensor = self.model(**self.inputs, labels=self.labels).loss
        return loss

    def detect(self) -> list[dict[str, Tensor]]:
        """``scores``, ``labels`` and ``boxes`` of each image."""
        self.modules.eval()
        with torch.no_grad(), self.autocast():
            outputs = self.model(**self.inputs)
        return self.postprocess(  # type: ignore[no-any-return]
            outputs, threshold=0.0, target_sizes=self.batch.images.sizes, top_k=self.top_k
        )

    def watch(self, recorder: Recorder) -> None:
        """Under our names; assignment and queries are in no module of their own."""
        watch(recorder, self._parts(), self._borders())

    def _parts(self) -> Iterator[tuple[str, nn.Module]]:
        inner = self.model.model
        yield "backbone", inner.backbone
        for projection in inner.input_proj:
            yield "neck", projection
        yield "encoder", inner.encoder
        yield "decoder", inner.decoder
        for layer in {*self.model.class_embed, *self.model.bbox_embed}:
            yield "class and box layers", layer

    def _borders(self) -> Iterable[Border]:
        inner = self.model.model
        yield Border(BACKWARD_ENCODER, inner.encoder, lambda output: [output[0]])
        for projection in inner.input_proj:
            yield Border(BACKWARD_BACKBONE, projection, lambda output: [output])


def from_experiment(name: str, options: ModelOptions) -> HuggingFace:
    """The same model as our two-stage experiment ``name``."""
    return HuggingFace(compose_experiment(name, CLASSES, options.overrides), options)


def _config(cfg: DictConfig) -> DeformableDetrConfig:
    model, config = cfg.model, cast(Any, DeformableDetrConfig)  # whose fields mypy cannot see
    backbone = {
        "model_type": "timm_backbone",
        "backbone": model.backbone.name,
        "num_channels": 3,
        "features_only": True,
        "use_pretrained_backbone": False,
        "out_indices": list(model.backbone.out_indices),
    }
    return config(
        backbone_config=backbone,
        num_labels=CLASSES,
        d_model=model.dim,
        num_feature_levels=model.levels,
        encoder_layers=model.encoder_layers,
        decoder_layers=model.decoder_layers,
        encoder_ffn_dim=model.hidden,
        decoder_ffn_dim=model.hidden,
        encoder_attention_heads=model.heads,
        decoder_attention_heads=model.heads,
        encoder_n_points=model.points,
        decoder_n_points=model.points,
        dropout=model.dropout,
        num_queries=model.num_queries,
        two_stage=True,
        two_stage_num_proposals=model.num_queries,
        with_box_refine=True,
        auxiliary_loss=True,
        disable_custom_kernels=True,
    )


def _stem_and_first_stage(backbone: nn.Module) -> Iterator[nn.Parameter]:
    later = ("layer2", "layer3", "layer4")
    for name, parameter in backbone.named_parameters():
        if not any(stage in name for stage in later):
            yield parameter
