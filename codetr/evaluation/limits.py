"""Images with more objects than can be found or counted: their AP stays below 1, however good a
detector is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from codetr.evaluation.ground_truth import ImageTruth


@dataclass(frozen=True, kw_only=True)
class Limit:
    """``most`` objects of an image (``of_class``: of each class of it) are what ``key`` allows;
    ``remedy`` says what to set instead.
    """

    key: str
    most: int
    remedy: str
    of_class: bool = False

    def objects(self, image: ImageTruth) -> int:
        """How many there are in an image to compare with ``most``; crowd regions are none."""
        labels = image.labels[image.crowd == 0]
        if not self.of_class:
            return len(labels)
        return int(labels.bincount().max()) if len(labels) else 0


def exceeded(limits: Iterable[Limit], truth: Mapping[int, ImageTruth]) -> list[str]:
    """A line for each limit that some of the images are above."""
    lines = []
    for limit in limits:
        counts = [limit.objects(image) for image in truth.values()]
        above = sum(count > limit.most for count in counts)
        if above:
            of_class = " of one class" if limit.of_class else ""
            lines.append(
                f"{limit.key}={limit.most}: {above} of {len(counts)} images have more "
                f"objects{of_class}, up to {max(counts)}, so that AP stays below 1: {limit.remedy}"
            )
    return lines
