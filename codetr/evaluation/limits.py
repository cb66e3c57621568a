"""Images with more objects than a detector can return or an evaluation counts: no detector reaches
AP 1 on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from codetr.evaluation.ground_truth import ImageTruth


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The setting ``key`` allows ``most`` objects per image, or with ``per_class`` per image and
    class. ``remedy`` says what to set instead.
    """

    key: str
    most: int
    remedy: str
    per_class: bool = False

    def objects(self, image: ImageTruth) -> int:
        """The number of objects to compare with ``most``, without crowd regions."""
        labels = image.labels[image.crowd == 0]
        if not self.per_class:
            return len(labels)
        return int(labels.bincount().max()) if len(labels) else 0


def exceeded(limits: Iterable[Limit], truth: Mapping[int, ImageTruth]) -> list[str]:
    """A warning for each limit that at least one image exceeds."""
    lines = []
    for limit in limits:
        counts = [limit.objects(image) for image in truth.values()]
        above = sum(count > limit.most for count in counts)
        if above:
            of_class = " of one class" if limit.per_class else ""
            lines.append(
                f"{limit.key}={limit.most}: {above} of {len(counts)} images have more "
                f"objects{of_class}, up to {max(counts)}, so that AP stays below 1: {limit.remedy}"
            )
    return lines
