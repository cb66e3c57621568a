"""Precision, recall and F1 of each class at IoU 0.5, over recall and over the score threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from codetr.evaluation.matching import NONE, Bools, Floats, Ints, Scene

RECALLS = np.linspace(0, 1, 101)
"""The recalls at which COCO samples precision."""
THRESHOLDS = np.linspace(0, 1, 201)
"""Score thresholds; detections above one count, as in prediction."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The detections of a split without the ignored ones: ``labels``, ``scores`` and ``hits`` (D,),
    true for true positives; ``num_true`` (K,): number of objects of each class.
    """

    labels: Ints
    scores: Floats
    hits: Bools
    num_true: Ints


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """A score threshold with precision, recall and F1 of the detections above it."""

    threshold: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, kw_only=True)
class Curves:
    """The curves of K classes, NaN for those without objects: ``precision`` (K, 101) at
    ``RECALLS``, whose mean is AP50; ``precision_above``, ``recall_above`` and ``f1_above`` (K, 201)
    of the detections above each of ``THRESHOLDS``.
    """

    precision: Floats
    precision_above: Floats
    recall_above: Floats
    f1_above: Floats

    @property
    def measured(self) -> Ints:
        """The classes that have objects."""
        return np.flatnonzero(~np.isnan(self.precision[:, 0]))

    def best(self) -> OperatingPoint:
        """The threshold with the largest mean F1; all values are means over classes."""
        own = self.measured
        return self._at(_peak(self.f1_above[own].mean(axis=0)), own)

    def best_of(self, label: int) -> OperatingPoint:
        """The threshold with the largest F1 of one class."""
        return self._at(_peak(self.f1_above[label]), np.array([label]))

    def _at(self, place: int, classes: Ints) -> OperatingPoint:
        return OperatingPoint(
            threshold=float(THRESHOLDS[place]),
            precision=float(self.precision_above[classes, place].mean()),
            recall=float(self.recall_above[classes, place].mean()),
            f1=float(self.f1_above[classes, place].mean()),
        )


def rank(scenes: Sequence[Scene], num_classes: int) -> Ranking:
    """The detections of all scenes, without the ignored ones."""
    kept = [~scene.ignored for scene in scenes]
    true = np.concatenate([scene.true_labels for scene in scenes])
    return Ranking(
        labels=np.concatenate([s.labels[k] for s, k in zip(scenes, kept, strict=True)]),
        scores=np.concatenate([s.scores[k] for s, k in zip(scenes, kept, strict=True)]),
        hits=np.concatenate([s.partner[k] != NONE for s, k in zip(scenes, kept, strict=True)]),
        num_true=np.bincount(true, minlength=num_classes),
    )


def curves(ranking: Ranking) -> Curves:
    """The curves of each class."""
    num_classes = len(ranking.num_true)
    precision = np.full((num_classes, len(RECALLS)), np.nan)
    above = np.full((3, num_classes, len(THRESHOLDS)), np.nan)
    for label in np.flatnonzero(ranking.num_true):
        own = ranking.labels == label
        scores, hits, true = ranking.scores[own], ranking.hits[own], int(ranking.num_true[label])
        precision[label] = precision_at_recalls(scores, hits, true)
        above[:, label] = above_thresholds(scores, hits, true)
    return Curves(
        precision=precision,
        precision_above=above[0],
        recall_above=above[1],
        f1_above=above[2],
    )


def precision_at_recalls(scores: Floats, hits: Bools, num_true: int) -> Floats:
    """For each of ``RECALLS`` (101,), the largest precision at this or a higher recall, 0 where it
    is not reached; ``hits`` (D,) is true for true positives, ``num_true`` at least 1.
    """
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(hits[order])
    precision = found / np.arange(1, len(found) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(found / num_true, RECALLS, side="left")
    return np.append(envelope, 0.0)[place]


def above_thresholds(scores: Floats, hits: Bools, num_true: int) -> Floats:
    """Precision, recall and F1 (3, 201) of the detections above each of ``THRESHOLDS``. Without
    detections, precision is 1.
    """
    kept = _above(scores)
    right = _above(scores[hits])
    precision = np.divide(right, kept, out=np.ones(len(kept)), where=kept > 0)
    return np.stack([precision, right / num_true, 2 * right / (kept + num_true)])


def _peak(values: Floats) -> int:
    """Index of the largest value; of several, the middle one."""
    places = np.flatnonzero(values == values.max())
    return int(places[len(places) // 2])


def _above(scores: Floats) -> Floats:
    """The number of scores above each threshold."""
    below = np.searchsorted(np.sort(scores), THRESHOLDS, side="right")
    return (len(scores) - below).astype(np.float64)
