"""Assigners: predictions or anchors and targets to an assignment."""

from codetr.assigners.hungarian import HungarianMatcher

__all__ = ["HungarianMatcher"]
