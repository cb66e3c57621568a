"""Operators without parameters."""

from codetr.ops.deformable_attention import multi_scale_deformable_attention, use_msda
from codetr.ops.fused_attention import avoid_cudnn_attention

__all__ = ["avoid_cudnn_attention", "multi_scale_deformable_attention", "use_msda"]
