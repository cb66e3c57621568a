"""Detections of images: detector, postprocessing and, where there is one, mask branch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from codetr.evaluation.postprocess import Postprocess
from codetr.structures import Detections, ImageInfo, Images


def detect(
    detector: Any, postprocess: Postprocess, images: Images, infos: Sequence[ImageInfo]
) -> tuple[Detections, ...]:
    """Detections in pixels of the original images. If the detector has a ``mask_branch``, it adds
    masks to the postprocessed detections, computed from the same feature maps.
    """
    branch = getattr(detector, "mask_branch", None)
    if branch is None:
        return postprocess(detector(images), images.sizes, infos)
    memory = detector.encode(images)
    found = postprocess(detector.predict(memory), images.sizes, infos)
    with_masks: tuple[Detections, ...] = branch(memory, found, infos)
    return with_masks
