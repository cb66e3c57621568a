"""The confusion matrix of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from codetr.evaluation.matching import NONE, Floats, Ints, Scene, match


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """``counts`` (K + 1, K + 1): row = true class, column = predicted class; the last column counts
    missed objects, the last row detections of the background.
    ``threshold``: the score above which detections count.
    """

    counts: Ints
    threshold: float

    def most_frequent(self, count: int) -> list[tuple[int, int, int]]:
        """The ``count`` most frequent confusions: true class, predicted class, number."""
        between = self.counts[:-1, :-1].copy()
        np.fill_diagonal(between, 0)
        order = np.argsort(-between, axis=None, kind="stable")[:count]
        pairs = zip(*np.unravel_index(order, between.shape), strict=True)
        return [(int(t), int(p), int(between[t, p])) for t, p in pairs if between[t, p]]

    def most_confused(self, count: int) -> Ints:
        """The ``count`` classes with the most confusions, in class order."""
        between = self.counts[:-1, :-1]
        wrong = between.sum(axis=0) + between.sum(axis=1) - 2 * between.diagonal()
        return np.sort(np.argsort(-wrong, kind="stable")[:count])


def confusion(scenes: Sequence[Scene], num_classes: int, threshold: float) -> Confusion:
    """The confusion matrix of the detections with a score above ``threshold``.

    They are matched one to one with objects of any class, in order of score, each with the free
    object of the largest IoU, if it is at least 0.5. Unmatched detections in a crowd region of
    their class do not count.
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
    """IoU (D, G), raised by one ulp for pairs of one class, so that these win ties."""
    return np.where(scene.same_class, np.nextafter(scene.iou, 2), scene.iou)
