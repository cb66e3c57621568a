"""From images to a pyramid of feature maps."""

from codetr.backbones.eva02 import Eva02Backbone
from codetr.backbones.protocol import Backbone
from codetr.backbones.swin import SwinBackbone
from codetr.backbones.timm import TimmBackbone

__all__ = ["Backbone", "Eva02Backbone", "SwinBackbone", "TimmBackbone"]
