"""Official names of Co-DETR's mask heads, and ours; in the style of ``official.RULES``."""

from __future__ import annotations

_REGIONS = "schemes.collaborative.heads.{head0}.mask_head."
_HEAD = "detector.mask_branch.head."
_SCORING = "detector.mask_branch.scoring."
_STAGE = r"mask_head\.(stages\.\d+)\."

MASK_RULES: tuple[tuple[str, str], ...] = (
    # of the region head, which only trains
    (r"roi_head\.0\.mask_head\.(convs\.\d+\.conv|upsample)\.(.*)", _REGIONS + r"\1.\2"),
    (r"roi_head\.0\.mask_head\.conv_logits\.(.*)", _REGIONS + r"classify.\1"),
    # of the detector
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
