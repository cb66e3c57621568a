"""The number of epochs, from the size of the training set."""

from __future__ import annotations

from dataclasses import dataclass

from codetr.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EpochsBySize:
    """The number of epochs that shows the model ``images_seen`` training images, clamped to
    ``at_least`` and ``at_most``: many for a small data set, few for a large one. Raises UserError
    for bounds that are not positive or not in order.
    """

    images_seen: int
    at_least: int
    at_most: int

    def __post_init__(self) -> None:
        if not (self.images_seen > 0 and 0 < self.at_least <= self.at_most):
            raise UserError(
                f"schedule.epochs: images_seen={self.images_seen} at_least={self.at_least} "
                f"at_most={self.at_most}: give positive numbers, at_least <= at_most"
            )

    def __call__(self, images: int) -> int:
        """Epochs for a training set of ``images`` images."""
        return min(max(round(self.images_seen / images), self.at_least), self.at_most)
