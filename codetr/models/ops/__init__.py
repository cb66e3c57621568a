"""Operators without parameters."""

from codetr.models.ops.deformable_attention import multi_scale_deformable_attention, use_msda
from codetr.models.ops.fused_attention import avoid_cudnn_attention

__all__ = ["avoid_cudnn_attention", "multi_scale_deformable_attention", "use_msda"]
