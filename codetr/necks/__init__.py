"""From backbone maps to maps of one width."""

from codetr.necks.channel_mapper import ChannelMapper

__all__ = ["ChannelMapper"]
