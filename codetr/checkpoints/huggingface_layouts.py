"""Names and settings of the transformers library's models, and the official ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from codetr.checkpoints.renaming import Rules


@dataclass(frozen=True, kw_only=True)
class Layout:
    """``rules`` from the library's names to the official ones; ``NAME#0``, ``NAME#1`` ... are parts
    that are joined along their rows. ``settings``: our keys, by those of config.json, that must
    have its values, which ``read`` may turn into ours; ``fixed``: its values that there is no key
    for.
    """

    rules: Rules
    settings: Mapping[str, str]
    fixed: Mapping[str, Any]
    read: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)


_BLOCK = r"vit\.encoder\.layer\.(\d+)\."
_OURS = r"backbone.blocks.\1."
YOLOS = Layout(
    rules=(
        (r"vit\.embeddings\.cls_token", r"backbone.cls_token"),
        (r"vit\.embeddings\.detection_tokens", r"backbone.det_token"),
        (r"vit\.embeddings\.position_embeddings", r"backbone.pos_embed"),
        (
            r"vit\.encoder\.(?:interpolation\.)?mid_position_embeddings",
            r"backbone.mid_pos_embed",
        ),
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
    settings={
        "hidden_size": "model.dim",
        "num_hidden_layers": "model.backbone.depth",
        "num_attention_heads": "model.heads",
        "intermediate_size": "model.hidden",
        "num_detection_tokens": "model.num_queries",
        "image_size": "model.backbone.table",
        "use_mid_position_embeddings": "model.backbone.middle",
    },
    fixed={"patch_size": 16, "num_channels": 3, "qkv_bias": True, "hidden_act": "gelu"},
)

_ENCODER = r"model\.encoder\.layers\.(\d+)\."
_ENCODED = r"transformer.encoder.layers.\1."
_DECODER = r"model\.decoder\.layers\.(\d+)\."
_DECODED = r"transformer.decoder.layers.\1."
DENSE: Rules = (
    (
        r"model\.backbone\.conv_encoder\.model\.(?:_backbone\.)?(.*)",
        r"backbone.0.body.\1",
    ),
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
"""What Conditional DETR and DAB-DETR have in common."""


def _same_size(width: str) -> dict[str, str]:
    """``width``: the key of that of tokens."""
    return {
        width: "model.dim",
        "encoder_layers": "model.encoder_layers",
        "decoder_layers": "model.decoder_layers",
        "encoder_attention_heads": "model.heads",
        "decoder_attention_heads": "model.heads",
        "encoder_ffn_dim": "model.hidden",
        "decoder_ffn_dim": "model.hidden",
        "num_queries": "model.num_queries",
        "dilation": "model.backbone.model_args.output_stride",
    }


def _stride(dilated: bool) -> int:
    return 16 if dilated else 32


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
    read={"dilation": _stride},
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
    settings=_same_size("hidden_size") | {"num_patterns": "model.num_patterns"},
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
    read={"dilation": _stride},
)

LAYOUTS: Mapping[str, Layout] = {"yolos": YOLOS, "conditional_detr": CONDITIONAL, "dab-detr": DAB}
"""By ``model_type`` in config.json."""
