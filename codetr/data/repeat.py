"""Repeating images within an epoch, so that rare classes are seen more often."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from codetr.data.annotations import CocoAnnotations, load_annotations
from codetr.errors import UserError


def images_of_classes(annotations: CocoAnnotations) -> tuple[Tensor, Tensor]:
    """(P,) int64 image indices and (P,) int64 labels: the distinct pairs of image and class."""
    num_classes = len(annotations.classes)
    pairs = (annotations.image_of_box * num_classes + annotations.labels).unique()
    return pairs // num_classes, pairs % num_classes


@cache
def image_counts(annotation_file: str) -> tuple[int, ...]:
    """The number of images of a COCO or LVIS file that contain each class, in class order."""
    annotations = load_annotations(Path(annotation_file).expanduser())
    _, labels = images_of_classes(annotations)
    return tuple(labels.bincount(minlength=len(annotations.classes)).tolist())


@dataclass(frozen=True)
class RepeatFactor:
    """Callable: annotations to the (I,) int64 number of times that each image occurs in an epoch.

    With f_c the share of images that contain class c, r_c = max(1, sqrt(``threshold`` / f_c)) and
    an image's factor is the largest r_c of its classes (Gupta et al., "LVIS", CVPR 2019, section
    4.2). It is rounded up, as in the official recipes (mmdet ``ClassBalancedDataset``); images
    without boxes occur once. Raises UserError if the threshold is not in (0, 1].
    """

    threshold: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise UserError(
                f"data.repeat.threshold={self.threshold}: give a share of images in (0, 1], or "
                "data.repeat=null for none"
            )

    def factors(self, annotations: CocoAnnotations) -> Tensor:
        """(I,) float64, before rounding."""
        images, labels = images_of_classes(annotations)
        counts = labels.bincount(minlength=len(annotations.classes))
        of_class = (self.threshold * len(annotations) / counts.double()).sqrt().clamp(min=1)
        once = torch.ones(len(annotations), dtype=torch.float64)
        return once.scatter_reduce(0, images, of_class[labels], "amax")

    def __call__(self, annotations: CocoAnnotations) -> Tensor:
        """See the class."""
        return self.factors(annotations).ceil().long()
