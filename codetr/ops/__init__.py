"""Operators without parameters."""

from codetr.ops.deformable_attention import multi_scale_deformable_attention

__all__ = ["multi_scale_deformable_attention"]
