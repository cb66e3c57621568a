"""Which class is taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from codetr.evaluation.matching import NONE, Floats, Ints, Scene, match


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """How often objects of a class were found as another.

    ``counts`` (K + 1, K + 1): row = true class, column = predicted class. The last column counts
    objects that were missed, the last row detections where no object is.
    ``threshold``: the score above which detections count.
    """

    counts: Ints
    threshold: float

    def most_frequent(self, count: int) -> list[tuple[int, int, int]]:
        """The ``count`` most frequent mix-ups of two classes: true, predicted, how often."""
        between = self.counts[:-1, :-1].copy()
        np.fill_diagonal(between, 0)
        order = np.argsort(-between, axis=None, kind="stable")[:count]
        pairs = zip(*np.unravel_index(order, between.shape), strict=True)
        return [(int(t), int(p), int(between[t, p])) for t, p in pairs if between[t, p]]

    def most_confused(self, count: int) -> Ints:
        """The ``count`` classes with the most mix-ups, in class order."""
        between = self.counts[:-1, :-1]
        wrong = between.sum(axis=0) + between.sum(axis=1) - 2 * between.diagonal()
        return np.sort(np.argsort(-wrong, kind="stable")[:count])


def confusion(scenes: Sequence[Scene], num_classes: int, threshold: float) -> Confusion:
    """Matches detections above ``threshold`` with objects of any class, one to one: the best
    detection first takes the object that it overlaps most, from IoU 0.5 on. Detections without an
    object, in a crowd region of their class, do not count.
    """
    true, predicted = [], []
    for scene in scenes:
        kept = scene.scores > threshold
        partner = match(_own_class_first(scene)[kept])
        labels, alone = scene.labels[kept], partner == NONE
        false = labels[alone & ~scene.in_crowd[kept]]
        missed = np.delete(scene.true_labels, partner[~alone])
        true += [scene.true_labels[partner[~alone]], np.full(len(false), num_classes), missed]
        predicted += [labels[~alone], false, np.full(len(missed), num_classes)]
    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    np.add.at(counts, (np.concatenate(true), np.concatenate(predicted)), 1)
    return Confusion(counts=counts, threshold=threshold)


def _own_class_first(scene: Scene) -> Floats:
    """The overlaps, such that of two equal ones that with an object of its class is larger."""
    return np.where(scene.same_class, np.nextafter(scene.iou, 2), scene.iou)
