"""Operators without parameters."""

from codetr.ops.deformable_attention import multi_scale_deformable_attention, use_msda

__all__ = ["multi_scale_deformable_attention", "use_msda"]
