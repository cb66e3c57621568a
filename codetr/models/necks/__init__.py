"""From backbone maps to maps of one width."""

from codetr.models.necks.channel_mapper import ChannelMapper
from codetr.models.necks.identity import IdentityNeck
from codetr.models.necks.projection import Projection
from codetr.models.necks.protocol import Neck
from codetr.models.necks.simple_feature_pyramid import SimpleFeaturePyramid

__all__ = ["ChannelMapper", "IdentityNeck", "Neck", "Projection", "SimpleFeaturePyramid"]
