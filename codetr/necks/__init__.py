"""From backbone maps to maps of one width."""

from codetr.necks.channel_mapper import ChannelMapper
from codetr.necks.simple_feature_pyramid import SimpleFeaturePyramid

__all__ = ["ChannelMapper", "SimpleFeaturePyramid"]
