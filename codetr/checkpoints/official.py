"""Names of the official Co-DETR checkpoints (Sense-X, and its port in mmdetection 3) and ours.

``RULES`` are tried in order; the first pattern that matches a whole key gives its new name.
``{head0}`` and ``{head1}`` are our names of the official auxiliary heads 0 and 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from codetr.checkpoints.mmdet_swin import is_mmdet_swin, to_official_swin
from codetr.checkpoints.official_masks import MASK_RULES
from codetr.checkpoints.official_vit import SFP_RULES, VIT_RULES

CLASS_EMBEDDING = "query_head.cls_branches.0.weight"

DROPPED = ""
"""New name of keys that hold nothing that we need."""

OFFICIAL_HEADS = ("rcnn", "atss")
"""Our names of the auxiliary heads 0 and 1 of all published models."""

_TRANSFORMER = r"query_head\.transformer\."
_COLLABORATIVE = "schemes.collaborative."

RULES: tuple[tuple[str, str], ...] = (
    *VIT_RULES,
    *SFP_RULES,
    *MASK_RULES,
    (r".*\.num_batches_tracked", DROPPED),
    (r"backbone\..*\.(relative_position_index|attn_mask)", DROPPED),  # tables that are computed
    (r"data_preprocessor\..*", DROPPED),  # mean and std, which conf/ has
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
    (
        _TRANSFORMER + r"encoder\.(layers\.\d+)\.attentions\.0\.(.*)",
        r"detector.encoder.\1.attention.\2",
    ),
    (
        _TRANSFORMER + r"encoder\.(layers\.\d+)\.norms\.0\.(.*)",
        r"detector.encoder.\1.attention_norm.\2",
    ),
    (
        _TRANSFORMER + r"encoder\.(layers\.\d+)\.norms\.1\.(.*)",
        r"detector.encoder.\1.feed_forward_norm.\2",
    ),
    (
        _TRANSFORMER + r"(encoder|decoder)\.(layers\.\d+)\.ffns\.0\.layers\.0\.0\.(.*)",
        r"detector.\1.\2.feed_forward.expand.\3",
    ),
    (
        _TRANSFORMER + r"(encoder|decoder)\.(layers\.\d+)\.ffns\.0\.layers\.1\.(.*)",
        r"detector.\1.\2.feed_forward.contract.\3",
    ),
    (
        _TRANSFORMER + r"decoder\.(layers\.\d+)\.attentions\.0\.attn\.in_proj_(weight|bias)",
        r"detector.decoder.\1.self_attention.in_proj.\2",
    ),
    (
        _TRANSFORMER + r"decoder\.(layers\.\d+)\.attentions\.0\.attn\.out_proj\.(.*)",
        r"detector.decoder.\1.self_attention.out_proj.\2",
    ),
    (
        _TRANSFORMER + r"decoder\.(layers\.\d+)\.attentions\.1\.(.*)",
        r"detector.decoder.\1.cross_attention.\2",
    ),
    (
        _TRANSFORMER + r"decoder\.(layers\.\d+)\.norms\.0\.(.*)",
        r"detector.decoder.\1.self_attention_norm.\2",
    ),
    (
        _TRANSFORMER + r"decoder\.(layers\.\d+)\.norms\.1\.(.*)",
        r"detector.decoder.\1.cross_attention_norm.\2",
    ),
    (
        _TRANSFORMER + r"decoder\.(layers\.\d+)\.norms\.2\.(.*)",
        r"detector.decoder.\1.feed_forward_norm.\2",
    ),
    (
        _TRANSFORMER + r"decoder\.ref_point_head\.(.*)",
        r"detector.decoder.anchor_position.mlp.\1",
    ),
    (_TRANSFORMER + r"decoder\.norm\.(.*)", r"detector.decoder.norm.\1"),
    (r"query_head\.cls_branches\.(.*)", r"detector.head.classify.\1"),
    (r"query_head\.reg_branches\.(.*)", r"detector.head.regress.\1"),
    (
        r"query_head\.(?:dn_generator\.)?label_embedding\.(.*)",
        r"schemes.denoising.label_embedding.\1",
    ),
    (r"query_head\.downsample\.(.*)", _COLLABORATIVE + r"extra_level.\1"),
    (
        _TRANSFORMER + r"aux_pos_trans\.(\d)\.(.*)",
        _COLLABORATIVE + r"embeddings.{head\1}.project.\2",
    ),
    (
        _TRANSFORMER + r"aux_pos_trans_norm\.(\d)\.(.*)",
        _COLLABORATIVE + r"embeddings.{head\1}.norm.\2",
    ),
    (
        _TRANSFORMER + r"pos_feats_trans\.(\d)\.(.*)",
        _COLLABORATIVE + r"embeddings.{head\1}.project_feature.\2",
    ),
    (
        _TRANSFORMER + r"pos_feats_norm\.(\d)\.(.*)",
        _COLLABORATIVE + r"embeddings.{head\1}.feature_norm.\2",
    ),
    (r"rpn_head\.rpn_(conv|cls|reg)\.(.*)", _COLLABORATIVE + r"heads.{head0}.rpn.\1.\2"),
    (
        r"roi_head\.0\.bbox_head\.shared_fcs\.(\d)\.(.*)",
        _COLLABORATIVE + r"heads.{head0}.box_head.fcs.\1.\2",
    ),
    (
        r"roi_head\.0\.bbox_head\.fc_(cls|reg)\.(.*)",
        _COLLABORATIVE + r"heads.{head0}.box_head.\1.\2",
    ),
    (
        r"bbox_head\.0\.(cls|reg)_convs\.(\d+)\.conv\.(.*)",
        _COLLABORATIVE + r"heads.{head1}.\1_tower.\2.conv.\3",
    ),
    (
        r"bbox_head\.0\.(cls|reg)_convs\.(\d+)\.gn\.(.*)",
        _COLLABORATIVE + r"heads.{head1}.\1_tower.\2.norm.\3",
    ),
    (
        r"bbox_head\.0\.atss_(cls|reg|centerness)\.(.*)",
        _COLLABORATIVE + r"heads.{head1}.\1.\2",
    ),
    (r"bbox_head\.0\.scales\.(\d+)\.scale", _COLLABORATIVE + r"heads.{head1}.scales.\1"),
)

_HEAD_POSITION = "query_head.transformer.head_pos_embed.weight"


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """``state`` under our names. Of the official keys: ``used`` ones with our name (several of ours
    joined by ", "), ``dropped`` ones that hold nothing we need, and ``unused`` ones: no rule knows
    them, or they belong to an auxiliary head that is not among ours.
    """

    state: dict[str, Tensor]
    used: Mapping[str, str]
    dropped: tuple[str, ...]
    unused: tuple[str, ...]


def convert_official(
    official: Mapping[str, Tensor], heads: Sequence[str] = OFFICIAL_HEADS
) -> Conversion:
    """Rename an official state dict, of either dialect.

    ``heads`` are our names of its auxiliary heads 0 and 1.
    """
    if is_mmdet_swin(official):
        official = to_official_swin(official)
    state: dict[str, Tensor] = {}
    used: dict[str, str] = {}
    dropped, unused = [], []
    for key, value in official.items():
        ours = _places(key, heads)
        if ours is None:
            unused.append(key)
        elif not ours:
            dropped.append(key)
        else:
            parts = value if key == _HEAD_POSITION else [value]  # one scalar per head
            state.update(zip(ours, parts, strict=key != _HEAD_POSITION))
            used[key] = ", ".join(ours)
    return Conversion(state=state, used=used, dropped=tuple(dropped), unused=tuple(unused))


def _places(key: str, heads: Sequence[str]) -> list[str] | None:
    """Our names of what ``key`` holds, none where it is not needed; None where there is no place
    for it.
    """
    if key == _HEAD_POSITION:
        return [f"{_COLLABORATIVE}embeddings.{name}.head_position" for name in heads] or None
    ours = rename(key)
    if ours is None:
        return None
    for number in range(len(OFFICIAL_HEADS)):
        place = f"{{head{number}}}"
        if place in ours:
            if number >= len(heads):
                return None
            ours = ours.replace(place, heads[number])
    return [] if ours == DROPPED else [ours]


def rename(key: str) -> str | None:
    """Our name of an official key, with ``{head0}`` in it where it belongs to a head; None if no
    rule knows it.
    """
    for pattern, replacement in RULES:
        match = re.fullmatch(pattern, key)
        if match:
            return match.expand(replacement)
    return None
