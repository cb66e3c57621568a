"""From images to a pyramid of feature maps."""

from codetr.models.backbones.eva02 import Eva02Backbone
from codetr.models.backbones.protocol import Backbone
from codetr.models.backbones.swin import SwinBackbone
from codetr.models.backbones.swin_tokens import TokenSwinBackbone
from codetr.models.backbones.timm import TimmBackbone
from codetr.models.backbones.vit_tokens import TokenVitBackbone

__all__ = [
    "Backbone",
    "Eva02Backbone",
    "SwinBackbone",
    "TimmBackbone",
    "TokenSwinBackbone",
    "TokenVitBackbone",
]
