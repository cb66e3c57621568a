"""Assigners: predictions or anchors and targets to an assignment."""

from codetr.supervision.assigners.anchors import AnchorMatcher
from codetr.supervision.assigners.hungarian import CostTables, HungarianMatcher, Matching, solve
from codetr.supervision.assigners.top_k import TopKAssigner

__all__ = ["AnchorMatcher", "CostTables", "HungarianMatcher", "Matching", "TopKAssigner", "solve"]
