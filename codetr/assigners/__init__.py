"""Assigners: predictions or anchors and targets to an assignment."""

from codetr.assigners.anchors import AnchorMatcher
from codetr.assigners.hungarian import CostTables, HungarianMatcher, Matching, solve
from codetr.assigners.top_k import TopKAssigner

__all__ = ["AnchorMatcher", "CostTables", "HungarianMatcher", "Matching", "TopKAssigner", "solve"]
