"""Official checkpoints of a model of seconds: their keys written down by hand from the official
code, their values from those of our model or at random."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from codetr.checkpoints.convert import KeyReport, as_checkpoint
from codetr.checkpoints.experiment import compose_experiment
from codetr.checkpoints.files import DetectorFile
from codetr.checkpoints.official_file import WeightSet, read_official_file
from codetr.conf_folder import conf_folder

CONF = conf_folder()
TINY = (
    "scheme=[one_to_one,denoising,collaborative]",
    "aux_heads=[rcnn,atss]",
    "model=co_dino_tiny",
    "model.dim=32",
    "model.hidden=32",
    "model.decoder_layers=2",
    "model.num_queries=12",
    "supervision.denoising_queries=6",
    "supervision.positive_queries=10",
    "supervision.regions.fc_dim=16",
)
"""Overrides of train.py, also under an experiment."""

_T = "query_head.transformer."
_PAIRS = {
    "neck.convs.#.conv": "detector.neck.maps.#.0",
    "neck.convs.#.gn": "detector.neck.maps.#.1",
    "neck.extra_convs.#.conv": "detector.neck.extra.#.0",
    "neck.extra_convs.#.gn": "detector.neck.extra.#.1",
    _T + "enc_output": "detector.query_init.stage.project",
    _T + "enc_output_norm": "detector.query_init.stage.norm",
    _T + "encoder.layers.#.norms.0": "detector.encoder.layers.#.attention_norm",
    _T + "encoder.layers.#.norms.1": "detector.encoder.layers.#.feed_forward_norm",
    _T + "decoder.layers.#.norms.0": "detector.decoder.layers.#.self_attention_norm",
    _T + "decoder.layers.#.norms.1": "detector.decoder.layers.#.cross_attention_norm",
    _T + "decoder.layers.#.norms.2": "detector.decoder.layers.#.feed_forward_norm",
    _T + "decoder.layers.#.attentions.0.attn.out_proj": (
        "detector.decoder.layers.#.self_attention.out_proj"
    ),
    _T + "decoder.ref_point_head.0": "detector.decoder.anchor_position.mlp.0",
    _T + "decoder.ref_point_head.2": "detector.decoder.anchor_position.mlp.2",
    _T + "decoder.norm": "detector.decoder.norm",
    "query_head.cls_branches.#": "detector.head.classify.#",
    "query_head.reg_branches.#.0": "detector.head.regress.#.0",
    "query_head.reg_branches.#.2": "detector.head.regress.#.2",
    "query_head.reg_branches.#.4": "detector.head.regress.#.4",
    "query_head.label_embedding": "schemes.denoising.label_embedding",
    "query_head.downsample.0": "schemes.collaborative.extra_level.0",
    "query_head.downsample.1": "schemes.collaborative.extra_level.1",
    _T + "aux_pos_trans.0": "schemes.collaborative.embeddings.rcnn.project",
    _T + "aux_pos_trans.1": "schemes.collaborative.embeddings.atss.project",
    _T + "aux_pos_trans_norm.0": "schemes.collaborative.embeddings.rcnn.norm",
    _T + "aux_pos_trans_norm.1": "schemes.collaborative.embeddings.atss.norm",
    "rpn_head.rpn_conv": "schemes.collaborative.heads.rcnn.rpn.conv",
    "rpn_head.rpn_cls": "schemes.collaborative.heads.rcnn.rpn.cls",
    "rpn_head.rpn_reg": "schemes.collaborative.heads.rcnn.rpn.reg",
    "roi_head.0.bbox_head.shared_fcs.#": "schemes.collaborative.heads.rcnn.box_head.fcs.#",
    "roi_head.0.bbox_head.fc_cls": "schemes.collaborative.heads.rcnn.box_head.cls",
    "roi_head.0.bbox_head.fc_reg": "schemes.collaborative.heads.rcnn.box_head.reg",
    "bbox_head.0.cls_convs.#.conv": "schemes.collaborative.heads.atss.cls_tower.#.conv",
    "bbox_head.0.cls_convs.#.gn": "schemes.collaborative.heads.atss.cls_tower.#.norm",
    "bbox_head.0.reg_convs.#.conv": "schemes.collaborative.heads.atss.reg_tower.#.conv",
    "bbox_head.0.reg_convs.#.gn": "schemes.collaborative.heads.atss.reg_tower.#.norm",
    "bbox_head.0.atss_cls": "schemes.collaborative.heads.atss.cls",
    "bbox_head.0.atss_reg": "schemes.collaborative.heads.atss.reg",
    "bbox_head.0.atss_centerness": "schemes.collaborative.heads.atss.centerness",
}
"""Modules with a weight and perhaps a bias; # is a number."""
for _stack, _place in (("encoder", "0"), ("decoder", "1")):
    _ours = "attention" if _stack == "encoder" else "cross_attention"
    for _part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj"):
        _PAIRS[f"{_T}{_stack}.layers.#.attentions.{_place}.{_part}"] = (
            f"detector.{_stack}.layers.#.{_ours}.{_part}"
        )
    for _number, _part in (("0.0", "expand"), ("1", "contract")):
        _PAIRS[f"{_T}{_stack}.layers.#.ffns.0.layers.{_number}"] = (
            f"detector.{_stack}.layers.#.feed_forward.{_part}"
        )
_SINGLE = {
    _T + "level_embeds": "detector.encoder.level_embed",
    _T + "query_embed.weight": "detector.query_init.content",
    _T + "decoder.layers.#.attentions.0.attn.in_proj_weight": (
        "detector.decoder.layers.#.self_attention.in_proj.weight"
    ),
    _T + "decoder.layers.#.attentions.0.attn.in_proj_bias": (
        "detector.decoder.layers.#.self_attention.in_proj.bias"
    ),
    "bbox_head.0.scales.#.scale": "schemes.collaborative.heads.atss.scales.#",
}


def official_names(state: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """(official name, our name) of everything in a model's ``state``."""
    for name in state:
        if name.startswith("detector.backbone.body."):
            yield name.replace("detector.backbone.body.", "backbone."), name
    pairs = [(f"{k}.{p}", f"{v}.{p}") for k, v in _PAIRS.items() for p in ("weight", "bias")]
    for official, ours in [*pairs, *_SINGLE.items()]:
        for number in range(10 if "#" in ours else 1):
            name = ours.replace("#", str(number))
            if name in state:
                yield official.replace("#", str(number)), name


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's ``state`` under official names (Sense-X); all of it must have one."""
    named = {official: state[ours] for official, ours in official_names(state)}
    assert len(named) == len(state), set(state) - {ours for _, ours in official_names(state)}
    return named


def tiny_config(num_classes: int, *overrides: str) -> DictConfig:
    """The configuration of train.py for a tiny model."""
    fixed = [f"num_classes={num_classes}", "paths.run_dir=x"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [*TINY, *fixed, *overrides])


def tiny_model(num_classes: int, *overrides: str) -> nn.ModuleDict:
    """``detector`` and ``schemes``, with random values in every parameter."""
    cfg = tiny_config(num_classes, *overrides)
    schemes = nn.ModuleDict({name: instantiate(part) for name, part in cfg.scheme.items()})
    model = nn.ModuleDict({"detector": instantiate(cfg.model.detector), "schemes": schemes})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    return model


def save_official(path: Path, state: Mapping[str, Tensor], names: Sequence[str]) -> Path:
    """A file as mmdetection 2 writes it."""
    meta = {"CLASSES": tuple(names), "epoch": 12, "config": "model = dict(...)"}
    torch.save({"meta": meta, "state_dict": dict(state)}, path)
    return path


def convert_file(
    path: str | Path,
    experiment: str,
    overrides: Sequence[str] = (),
    weight_set: WeightSet = "plain",
) -> tuple[DetectorFile, KeyReport]:
    """Read an official file as the checkpoint of one of our experiments; see ``as_checkpoint``.

    Raises UserError for an unusable file and an unknown experiment.
    """
    file = read_official_file(path, weight_set)
    return as_checkpoint(file, compose_experiment(experiment, len(file.classes), overrides))
