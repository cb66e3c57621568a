"""From images to a pyramid of feature maps."""

from codetr.backbones.timm import TimmBackbone

__all__ = ["TimmBackbone"]
