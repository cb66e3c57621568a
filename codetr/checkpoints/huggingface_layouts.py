"""How tensor names and settings of the transformers library correspond to the official ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codetr.checkpoints.renaming import Rules
from codetr.errors import UserError

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Setting:
    """Our key ``ours`` must have the value of ``theirs`` in config.json, converted by ``read``.
    If our configuration lacks the key, its value is ``absent``.
    """

    theirs: str
    ours: str
    read: Callable[[Any], Any] = lambda value: value
    absent: Any = None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """``rules`` map the library's names to the official ones; ``NAME#0``, ``NAME#1`` ... are parts
    that are concatenated along their rows; ``complete`` (state dict, path of the file) adds further
    names of tensors that the file has only once.
    ``settings`` must agree with config.json; ``fixed`` are values of config.json that we have no
    key for. The layout applies to a config.json with the values ``flags`` (missing ones are false)
    and to our model ``page``, which is recognised by the settings ``kind``.
    """

    rules: Rules
    settings: Sequence[Setting]
    fixed: Mapping[str, Any]
    complete: Callable[[State, Path], State] = lambda state, path: state
    flags: Mapping[str, bool] = field(default_factory=dict)
    page: str = ""
    kind: Sequence[Setting] = ()


_BLOCK = r"vit\.encoder\.layer\.(\d+)\."
_OURS = r"backbone.blocks.\1."
YOLOS = Layout(
    rules=(
        (r"vit\.embeddings\.cls_token", r"backbone.cls_token"),
        (r"vit\.embeddings\.detection_tokens", r"backbone.det_token"),
        (r"vit\.embeddings\.position_embeddings", r"backbone.pos_embed"),
        (r"vit\.encoder\.(?:interpolation\.)?mid_position_embeddings", r"backbone.mid_pos_embed"),
        (r"vit\.embeddings\.patch_embeddings\.projection\.(.*)", r"backbone.patch_embed.proj.\1"),
        (_BLOCK + r"attention\.attention\.query\.(.*)", _OURS + r"attn.qkv.\2#0"),
        (_BLOCK + r"attention\.attention\.key\.(.*)", _OURS + r"attn.qkv.\2#1"),
        (_BLOCK + r"attention\.attention\.value\.(.*)", _OURS + r"attn.qkv.\2#2"),
        (_BLOCK + r"attention\.output\.dense\.(.*)", _OURS + r"attn.proj.\2"),
        (_BLOCK + r"intermediate\.dense\.(.*)", _OURS + r"mlp.fc1.\2"),
        (_BLOCK + r"output\.dense\.(.*)", _OURS + r"mlp.fc2.\2"),
        (_BLOCK + r"layernorm_before\.(.*)", _OURS + r"norm1.\2"),
        (_BLOCK + r"layernorm_after\.(.*)", _OURS + r"norm2.\2"),
        (r"vit\.layernorm\.(.*)", r"backbone.norm.\1"),
        (r"class_labels_classifier\.(.*)", r"class_embed.\1"),
        (r"bbox_predictor\.(.*)", r"bbox_embed.\1"),
    ),
    settings=(
        Setting("hidden_size", "model.dim"),
        Setting("num_hidden_layers", "model.backbone.depth"),
        Setting("num_attention_heads", "model.heads"),
        Setting("intermediate_size", "model.hidden"),
        Setting("num_detection_tokens", "model.num_queries"),
        Setting("image_size", "model.backbone.table"),
        Setting("use_mid_position_embeddings", "model.backbone.middle"),
    ),
    fixed={"patch_size": 16, "num_channels": 3, "qkv_bias": True, "hidden_act": "gelu"},
)

_ENCODER = r"model\.encoder\.layers\.(\d+)\."
_ENCODED = r"transformer.encoder.layers.\1."
_DECODER = r"model\.decoder\.layers\.(\d+)\."
_DECODED = r"transformer.decoder.layers.\1."
DENSE: Rules = (
    (r"model\.backbone\.conv_encoder\.model\.(?:_backbone\.)?(.*)", r"backbone.0.body.\1"),
    (r"model\.input_projection\.(.*)", r"input_proj.\1"),
    (_ENCODER + r"self_attn\.q_proj\.(.*)", _ENCODED + r"self_attn.in_proj_\2#0"),
    (_ENCODER + r"self_attn\.k_proj\.(.*)", _ENCODED + r"self_attn.in_proj_\2#1"),
    (_ENCODER + r"self_attn\.v_proj\.(.*)", _ENCODED + r"self_attn.in_proj_\2#2"),
    (_ENCODER + r"self_attn\.out_proj\.(.*)", _ENCODED + r"self_attn.out_proj.\2"),
    (_ENCODER + r"self_attn_layer_norm\.(.*)", _ENCODED + r"norm1.\2"),
    (_ENCODER + r"final_layer_norm\.(.*)", _ENCODED + r"norm2.\2"),
    (_ENCODER + r"fc([12])\.(.*)", _ENCODED + r"linear\2.\3"),
    (_ENCODER + r"activation_fn\.(.*)", _ENCODED + r"activation.\2"),
    (_DECODER + r"(?:mlp\.)?final_layer_norm\.(.*)", _DECODED + r"norm3.\2"),
    (_DECODER + r"(?:mlp\.)?fc([12])\.(.*)", _DECODED + r"linear\2.\3"),
    (r"model\.decoder\.layernorm\.(.*)", r"transformer.decoder.norm.\1"),
    (
        r"model\.((?:encoder|decoder)\.(?:query_scale|ref_point_head|ref_anchor_head)\..*)",
        r"transformer.\1",
    ),
    (r"(?:class_labels_classifier|class_embed)\.(.*)", r"class_embed.\1"),
    (r"bbox_predictor\.(.*)", r"bbox_embed.\1"),
)
"""Rules that Conditional DETR and DAB-DETR share."""


def _stride(dilated: bool) -> int:
    return 16 if dilated else 32


def _same_size(width: str, queries: str = "num_queries") -> tuple[Setting, ...]:
    """Settings of sizes; ``width`` is the key of the dimension of tokens, ``queries`` that of the
    number of queries.
    """
    return (
        Setting(width, "model.dim"),
        Setting("encoder_layers", "model.encoder_layers"),
        Setting("decoder_layers", "model.decoder_layers"),
        Setting("encoder_attention_heads", "model.heads"),
        Setting("decoder_attention_heads", "model.heads"),
        Setting("encoder_ffn_dim", "model.hidden"),
        Setting("decoder_ffn_dim", "model.hidden"),
        Setting(queries, "model.num_queries"),
        Setting("dilation", "model.backbone.model_args.output_stride", _stride, absent=32),
    )


CONDITIONAL = Layout(
    rules=(
        (r"model\.query_position_embeddings\.(.*)", r"query_embed.\1"),
        (_DECODER + r"((?:sa|ca)_\w+_proj)\.(.*)", _DECODED + r"\2.\3"),
        (_DECODER + r"self_attn\.out_proj\.(.*)", _DECODED + r"self_attn.out_proj.\2"),
        (_DECODER + r"encoder_attn\.out_proj\.(.*)", _DECODED + r"cross_attn.out_proj.\2"),
        (_DECODER + r"self_attn_layer_norm\.(.*)", _DECODED + r"norm1.\2"),
        (_DECODER + r"encoder_attn_layer_norm\.(.*)", _DECODED + r"norm2.\2"),
        *DENSE,
    ),
    settings=_same_size("d_model"),
    fixed={"activation_function": "relu", "position_embedding_type": "sine", "num_channels": 3},
)
_PROJECTIONS = {
    "query_content": "qcontent",
    "query_pos": "qpos",
    "query_pos_sine": "qpos_sine",
    "key_content": "kcontent",
    "key_pos": "kpos",
    "value": "v",
}
DAB = Layout(
    rules=(
        (r"model\.query_refpoint_embeddings\.(.*)", r"refpoint_embed.\1"),
        (r"model\.patterns\.(.*)", r"transformer.patterns.\1"),
        *(
            (
                _DECODER + rf"{kind}_attn\.{kind}_attn_{theirs}_proj\.(.*)",
                _DECODED + rf"{short}_{official}_proj.\2",
            )
            for kind, short in (("self", "sa"), ("cross", "ca"))
            for theirs, official in _PROJECTIONS.items()
        ),
        (
            _DECODER + r"(self|cross)_attn\.(?:self|cross)_attn\.output_proj\.(.*)",
            _DECODED + r"\2_attn.out_proj.\3",
        ),
        (_DECODER + r"self_attn\.self_attn_layer_norm\.(.*)", _DECODED + r"norm1.\2"),
        (_DECODER + r"cross_attn\.cross_attn_layer_norm\.(.*)", _DECODED + r"norm2.\2"),
        (_DECODER + r"mlp\.activation_fn\.(.*)", _DECODED + r"activation.\2"),
        (r"model\.decoder\.(bbox_embed\..*)", r"transformer.decoder.\1"),
        *DENSE,
    ),
    settings=(*_same_size("hidden_size"), Setting("num_patterns", "model.num_patterns")),
    fixed={
        "activation_function": "prelu",
        "keep_query_pos": False,
        "normalize_before": False,
        "num_channels": 3,
        "query_dim": 4,
        "sine_position_embedding_scale": None,
        "temperature_height": 20,
        "temperature_width": 20,
    },
)

_COPY = "transformer.decoder."


def _every_head(state: State, path: Path) -> State:
    """The state dict with the class and box embedding of every layer. The library stores tied ones
    once, as the decoder's or as the first layer's.
    """
    copies = {
        key.removeprefix(_COPY): value
        for key, value in state.items()
        if re.match(rf"{re.escape(_COPY)}(bbox|class)_embed\.", key)
    }
    other = [key for key, value in copies.items() if not torch.equal(value, state.get(key, value))]
    if other:
        raise UserError(
            f"{path}: {other[0]} and model.decoder.{other[0]} differ: models that refine boxes "
            "with another head than they predict with are not supported"
        )
    heads = copies | {k: v for k, v in state.items() if re.match(r"(bbox|class)_embed\.\d+\.", k)}
    layers = sorted({int(key.split(".")[1]) for key in heads})
    first = {key: value for key, value in heads.items() if key.split(".")[1] == "0"}
    tied = {key.replace(".0.", f".{i}.", 1): first[key] for i in layers for key in first}
    return {**tied, **state, **heads}


def _deformable(page: str, refine: bool, two_stage: bool) -> Layout:
    """The layout of the Deformable DETR variant of our model ``page``."""
    return Layout(
        rules=(
            (r"model\.query_position_embeddings\.(.*)", r"query_embed.\1"),
            (r"model\.input_proj\.(.*)", r"input_proj.\1"),
            (
                r"model\.((?:reference_points|level_embed|enc_output|pos_trans|"
                r"decoder\.(?:bbox|class)_embed).*)",
                r"transformer.\1",
            ),
            (_DECODER + r"self_attn\.q_proj\.(.*)", _DECODED + r"self_attn.in_proj_\2#0"),
            (_DECODER + r"self_attn\.k_proj\.(.*)", _DECODED + r"self_attn.in_proj_\2#1"),
            (_DECODER + r"self_attn\.v_proj\.(.*)", _DECODED + r"self_attn.in_proj_\2#2"),
            (_DECODER + r"self_attn\.out_proj\.(.*)", _DECODED + r"self_attn.out_proj.\2"),
            (_DECODER + r"encoder_attn\.(.*)", _DECODED + r"cross_attn.\2"),
            (_DECODER + r"encoder_attn_layer_norm\.(.*)", _DECODED + r"norm1.\2"),
            (_DECODER + r"self_attn_layer_norm\.(.*)", _DECODED + r"norm2.\2"),
            (_ENCODER + r"self_attn\.(.*)", _ENCODED + r"self_attn.\2"),
            (r"bbox_embed\.(.*)", r"bbox_embed.\1"),
            *DENSE,
        ),
        settings=(
            *_same_size("d_model", "two_stage_num_proposals" if two_stage else "num_queries"),
            Setting("encoder_n_points", "model.points"),
            Setting("decoder_n_points", "model.points"),
            Setting("num_feature_levels", "model.levels"),
            Setting("num_feature_levels", "model.neck.extra", lambda levels: max(levels - 3, 0)),
            Setting(
                "num_feature_levels",
                "model.backbone.out_indices",
                lambda levels: [2, 3, 4] if levels > 1 else [4],
            ),
            Setting("num_feature_levels", "model.neck.bias", lambda levels: True, absent=False),
        ),
        fixed={"activation_function": "relu", "position_embedding_type": "sine", "num_channels": 3},
        complete=_every_head,
        flags={"two_stage": two_stage, "with_box_refine": refine},
        page=page,
        kind=(
            Setting("two_stage", "model.head.two_stage", absent=True),
            Setting("with_box_refine", "model.decoder.refine", absent=True),
        ),
    )


LAYOUTS: Mapping[str, Sequence[Layout]] = {
    "yolos": (YOLOS,),
    "conditional_detr": (CONDITIONAL,),
    "dab-detr": (DAB,),
    "deformable_detr": (
        _deformable("deformable_detr", refine=False, two_stage=False),
        _deformable("deformable_refined", refine=True, two_stage=False),
        _deformable("deformable_two_stage", refine=True, two_stage=True),
    ),
}
"""By ``model_type`` in config.json."""
