"""Assigners: predictions or anchors and targets to an assignment."""

from codetr.supervision.assigners.anchors import AnchorMatcher
from codetr.supervision.assigners.class_costs import ClassCost, FocalCost, ProbabilityCost
from codetr.supervision.assigners.hungarian import CostTables, HungarianMatcher, Matching, solve
from codetr.supervision.assigners.top_k import TopKAssigner

__all__ = [
    "AnchorMatcher",
    "ClassCost",
    "CostTables",
    "FocalCost",
    "HungarianMatcher",
    "Matching",
    "ProbabilityCost",
    "TopKAssigner",
    "solve",
]
