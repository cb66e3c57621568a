"""Conversion of official Co-DETR checkpoints (Sense-X, and its port in mmdetection 3).

``{head0}`` and ``{head1}`` stand for our names of the official auxiliary heads 0 and 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from codetr.checkpoints.mmdet_swin import is_mmdet_swin, to_official_swin
from codetr.checkpoints.renaming import DROPPED, Conversion, Rules, convert, named, rename

CLASS_EMBEDDING = "query_head.cls_branches.0.weight"

OFFICIAL_HEADS = ("rcnn", "atss")
"""Our names of the auxiliary heads 0 and 1 of all published models."""

_TRANSFORMER = r"query_head\.transformer\."
_LAYERS = _TRANSFORMER + r"(encoder|decoder)\.(layers\.\d+)\."
_ENCODER = _TRANSFORMER + r"encoder\.(layers\.\d+)\."
_DECODER = _TRANSFORMER + r"decoder\.(layers\.\d+)\."
_SELF_ATTENTION = _DECODER + r"attentions\.0\.attn\."
_ROI = r"roi_head\.0\.bbox_head\."
_DENSE = r"bbox_head\.0\."

_EMBEDDING = r"schemes.collaborative.embeddings.{head\1}."
_HEAD0 = "schemes.collaborative.heads.{head0}."
_HEAD1 = "schemes.collaborative.heads.{head1}."

SFP_RULES: Rules = (
    # Layers of branches have the same numbers.
    (r"neck\.(p[2-6])\.(.*)", r"detector.neck.levels.\1.\2"),
)

VIT_RULES: Rules = (
    # The weights that were being trained; the plain names have the moving average.
    (r"ema_.*", ""),
    # Tables of rotations, which we compute.
    (r"backbone\.(?:.*\.)?rope(?:_\w+)?\.freqs_(?:cos|sin)", ""),
    (_ROI + r"shared_convs\.(\d+)\.conv\.(.*)", _HEAD0 + r"box_head.convs.\1.conv.\2"),
    (_ROI + r"shared_convs\.(\d+)\.gn\.(.*)", _HEAD0 + r"box_head.convs.\1.norm.\2"),
)
"""Rules for the ViT recipes."""

_HEAD = "detector.mask_branch.head."
_SCORING = "detector.mask_branch.scoring."
_STAGE = r"mask_head\.(stages\.\d+)\."

MASK_RULES: Rules = (
    # the region head, used in training only
    (r"roi_head\.0\.mask_head\.(convs\.\d+\.conv|upsample)\.(.*)", _HEAD0 + r"mask_head.\1.\2"),
    (r"roi_head\.0\.mask_head\.conv_logits\.(.*)", _HEAD0 + r"mask_head.classify.\1"),
    # the detector
    (r"mask_head\.((?:instance|semantic)_convs\.\d+)\.conv\.(.*)", _HEAD + r"\1.conv.\2"),
    (r"mask_head\.((?:instance|semantic)_convs\.\d+)\.norm_layer\.(.*)", _HEAD + r"\1.norm.\2"),
    (_STAGE + r"semantic_transform_in\.(.*)", _HEAD + r"\1.reduce.\2"),
    (_STAGE + r"fuse_conv\.0\.(.*)", _HEAD + r"\1.fuse.\2"),
    *(
        (
            _STAGE + rf"fuse_conv\.1\.dilation_conv_{number + 1}\.conv\.(.*)",
            _HEAD + rf"\1.context.branches.{number}.\2",
        )
        for number in range(3)
    ),
    (_STAGE + r"fuse_conv\.1\.merge_conv\.conv\.(.*)", _HEAD + r"\1.context.merge.\2"),
    (_STAGE + r"fuse_transform_out\.(.*)", _HEAD + r"\1.narrow.\2"),
    (r"mask_head\.stage_instance_logits\.(\d+)\.(.*)", _HEAD + r"classify.\1.\2"),
    (r"mask_iou_head\.(convs\.\d+)\.conv\.(.*)", _SCORING + r"\1.conv.\2"),
    (r"mask_iou_head\.(convs\.\d+)\.norm_layer\.(.*)", _SCORING + r"\1.norm.\2"),
    (r"mask_iou_head\.(fcs\.\d+)\.(.*)", _SCORING + r"\1.\2"),
    (r"mask_iou_head\.fc_mask_iou\.(.*)", _SCORING + r"iou.\1"),
)

RULES: Rules = (
    *VIT_RULES,
    *SFP_RULES,
    *MASK_RULES,
    (r".*\.num_batches_tracked", DROPPED),
    (r"backbone\..*\.(relative_position_index|attn_mask)", DROPPED),  # computed tables
    (r"data_preprocessor\..*", DROPPED),  # mean and std, which are in conf/
    (r"backbone\.(.*)", r"detector.backbone.body.\1"),
    (r"neck\.convs\.(\d+)\.conv\.(.*)", r"detector.neck.maps.\1.0.\2"),
    (r"neck\.convs\.(\d+)\.gn\.(.*)", r"detector.neck.maps.\1.1.\2"),
    (r"neck\.extra_convs\.(\d+)\.conv\.(.*)", r"detector.neck.extra.\1.0.\2"),
    (r"neck\.extra_convs\.(\d+)\.gn\.(.*)", r"detector.neck.extra.\1.1.\2"),
    (_TRANSFORMER + r"level_embeds", r"detector.encoder.level_embed"),
    (_TRANSFORMER + r"enc_output\.(.*)", r"detector.query_init.stage.project.\1"),
    (_TRANSFORMER + r"enc_output_norm\.(.*)", r"detector.query_init.stage.norm.\1"),
    (_TRANSFORMER + r"query_embed\.weight", r"detector.query_init.content"),
    (r"query_head\.query_embedding\.weight", r"detector.query_init.content"),
    (_TRANSFORMER + r"pos_trans\.(.*)", r"detector.query_init.position.\1"),
    (_TRANSFORMER + r"pos_trans_norm\.(.*)", r"detector.query_init.position_norm.\1"),
    (_ENCODER + r"attentions\.0\.(.*)", r"detector.encoder.\1.attention.\2"),
    (_ENCODER + r"norms\.0\.(.*)", r"detector.encoder.\1.attention_norm.\2"),
    (_ENCODER + r"norms\.1\.(.*)", r"detector.encoder.\1.feed_forward_norm.\2"),
    (_LAYERS + r"ffns\.0\.layers\.0\.0\.(.*)", r"detector.\1.\2.feed_forward.expand.\3"),
    (_LAYERS + r"ffns\.0\.layers\.1\.(.*)", r"detector.\1.\2.feed_forward.contract.\3"),
    (_SELF_ATTENTION + r"in_proj_(weight|bias)", r"detector.decoder.\1.self_attention.in_proj.\2"),
    (_SELF_ATTENTION + r"out_proj\.(.*)", r"detector.decoder.\1.self_attention.out_proj.\2"),
    (_DECODER + r"attentions\.1\.(.*)", r"detector.decoder.\1.cross_attention.\2"),
    (_DECODER + r"norms\.0\.(.*)", r"detector.decoder.\1.self_attention_norm.\2"),
    (_DECODER + r"norms\.1\.(.*)", r"detector.decoder.\1.cross_attention_norm.\2"),
    (_DECODER + r"norms\.2\.(.*)", r"detector.decoder.\1.feed_forward_norm.\2"),
    (_TRANSFORMER + r"decoder\.ref_point_head\.(.*)", r"detector.decoder.anchor_position.mlp.\1"),
    (_TRANSFORMER + r"decoder\.norm\.(.*)", r"detector.decoder.norm.\1"),
    (r"query_head\.cls_branches\.(.*)", r"detector.head.classify.\1"),
    (r"query_head\.reg_branches\.(.*)", r"detector.head.regress.\1"),
    (
        r"query_head\.(?:dn_generator\.)?label_embedding\.(.*)",
        r"schemes.denoising.label_embedding.\1",
    ),
    (r"query_head\.downsample\.(.*)", r"schemes.collaborative.extra_level.\1"),
    (_TRANSFORMER + r"aux_pos_trans\.(\d)\.(.*)", _EMBEDDING + r"project.\2"),
    (_TRANSFORMER + r"aux_pos_trans_norm\.(\d)\.(.*)", _EMBEDDING + r"norm.\2"),
    (_TRANSFORMER + r"pos_feats_trans\.(\d)\.(.*)", _EMBEDDING + r"project_feature.\2"),
    (_TRANSFORMER + r"pos_feats_norm\.(\d)\.(.*)", _EMBEDDING + r"feature_norm.\2"),
    (r"rpn_head\.rpn_(conv|cls|reg)\.(.*)", _HEAD0 + r"rpn.\1.\2"),
    (_ROI + r"shared_fcs\.(\d)\.(.*)", _HEAD0 + r"box_head.fcs.\1.\2"),
    (_ROI + r"fc_(cls|reg)\.(.*)", _HEAD0 + r"box_head.\1.\2"),
    (_DENSE + r"(cls|reg)_convs\.(\d+)\.conv\.(.*)", _HEAD1 + r"\1_tower.\2.conv.\3"),
    (_DENSE + r"(cls|reg)_convs\.(\d+)\.gn\.(.*)", _HEAD1 + r"\1_tower.\2.norm.\3"),
    (_DENSE + r"atss_(cls|reg|centerness)\.(.*)", _HEAD1 + r"\1.\2"),
    (_DENSE + r"scales\.(\d+)\.scale", _HEAD1 + r"scales.\1"),
)

_HEAD_POSITION = "query_head.transformer.head_pos_embed.weight"


def convert_official(
    official: Mapping[str, Tensor], heads: Sequence[str] = OFFICIAL_HEADS
) -> Conversion:
    """Convert an official state dict of either repository.

    ``heads`` are our names of its auxiliary heads 0 and 1.
    """
    if is_mmdet_swin(official):
        official = to_official_swin(official)

    def place(key: str, value: Tensor) -> Mapping[str, Tensor] | None:
        if key == _HEAD_POSITION and heads:  # one scalar per head
            names = [f"schemes.collaborative.embeddings.{name}.head_position" for name in heads]
            return dict(zip(names, value, strict=True))
        return named(_of_heads(rename(key, RULES), heads), value)

    return convert(official, place)


def _of_heads(name: str | None, heads: Sequence[str]) -> str | None:
    """``name`` with our name of the head that it belongs to; None if that head is not in
    ``heads``.
    """
    for number in range(len(OFFICIAL_HEADS)):
        place = f"{{head{number}}}"
        if name is not None and place in name:
            name = name.replace(place, heads[number]) if number < len(heads) else None
    return name
