"""Mask heads of the deployed model: they predict the masks of the detector's boxes."""

from codetr.models.masks.branch import MaskBranch, MaskPredictions
from codetr.models.masks.refine import RefineMaskHead
from codetr.models.masks.scoring import MaskIouHead

__all__ = ["MaskBranch", "MaskIouHead", "MaskPredictions", "RefineMaskHead"]
