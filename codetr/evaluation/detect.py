"""A detector and its postprocessing: from images to detections, with masks where it has some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from codetr.evaluation.postprocess import Postprocess
from codetr.structures import Detections, ImageInfo, Images


def detect(
    detector: Any, postprocess: Postprocess, images: Images, infos: Sequence[ImageInfo]
) -> tuple[Detections, ...]:
    """Detections in pixels of the original images. A ``mask_branch`` of the detector looks at what
    is left by the postprocessing, on the maps that the boxes were found on.
    """
    branch = getattr(detector, "mask_branch", None)
    if branch is None:
        return postprocess(detector(images), images.sizes, infos)
    memory = detector.encode(images)
    found = postprocess(detector.predict(memory), images.sizes, infos)
    with_masks: tuple[Detections, ...] = branch(memory, found, infos)
    return with_masks
