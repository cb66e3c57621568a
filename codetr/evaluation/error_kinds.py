"""Errors by kind, and what each kind costs: the TIDE decomposition.

Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020
(arXiv 2008.08115), section 2: every false positive is of one kind, and so is every object that was
not found. The cost of a kind is the AP50 that is gained where an oracle mends the errors of that
kind alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from codetr.evaluation.matching import IOU, NONE, Bools, Floats, Ints, Scene
from codetr.evaluation.precision_recall import precision_at_recalls

BACKGROUND = 0.1
"""What overlaps every object less than this is on the background."""


class Kind(Enum):
    """Kinds of errors, each with what it is (IoU with an object)."""

    CLASS = "class"
    LOCALISATION = "localisation"
    BOTH = "both"
    DUPLICATE = "duplicate"
    BACKGROUND = "background"
    MISSED = "missed"

    @property
    def meaning(self) -> str:
        """In a line."""
        return _MEANING[self]


_MEANING = {
    Kind.CLASS: "on an object of another class",
    Kind.LOCALISATION: "on an object, at IoU 0.1 to 0.5",
    Kind.BOTH: "another class, at IoU 0.1 to 0.5",
    Kind.DUPLICATE: "on an object that is found already",
    Kind.BACKGROUND: "on no object: IoU below 0.1",
    Kind.MISSED: "an object without any detection",
}
_KINDS = tuple(Kind)
_CODE = {kind: code for code, kind in enumerate(_KINDS)}
_RIGHT = -1


@dataclass(frozen=True, kw_only=True)
class Errors:
    """All detections and objects of a split, with their errors.

    ``labels``, ``scores`` (D,); ``kinds`` (D,) positions in ``Kind``, -1 where a detection is
    right; ``targets`` (D,) the object that a wrong class or place is meant for, or ``NONE``.
    ``true_labels`` (G,); ``found`` (G,) by a right detection; ``missed`` (G,).
    """

    labels: Ints
    scores: Floats
    kinds: Ints
    targets: Ints
    true_labels: Ints
    found: Bools
    missed: Bools
    num_classes: int

    def count(self, kind: Kind) -> int:
        """How many there are."""
        if kind is Kind.MISSED:
            return int(self.missed.sum())
        return int((self.kinds == _CODE[kind]).sum())

    def cost(self, kind: Kind) -> float:
        """AP50 that mending it would add."""
        return self.ap50({kind}) - self.ap50()

    def ap50(self, mended: Collection[Kind] = ()) -> float:
        """Mean over the classes that have objects; -1 where none has.

        Mended: a wrong class or place becomes right where no right detection has the object, of
        several for one object that with the best score, and the others go. Further false positives
        go, and objects that were missed are no longer asked for; a class of which none is left has
        AP 1 without detections, else 0.
        """
        asked = self.true_labels[~self.missed] if Kind.MISSED in mended else self.true_labels
        num_true = np.bincount(asked, minlength=self.num_classes)
        labels, hits, kept = self._mend(mended)
        values = []
        for label in np.unique(self.true_labels):
            own = kept & (labels == label)
            if num_true[label]:
                at = precision_at_recalls(self.scores[own], hits[own], int(num_true[label]))
                values.append(float(at.mean()))
            else:
                values.append(0.0 if own.any() else 1.0)
        return float(np.mean(values)) if values else -1.0

    def _mend(self, mended: Collection[Kind]) -> tuple[Ints, Bools, Bools]:
        """Labels, hits and what stays (D,) of the detections."""
        chosen = np.isin(self.kinds, [_CODE[kind] for kind in mended])
        candidates = np.flatnonzero(chosen & (self.targets != NONE))
        candidates = candidates[~self.found[self.targets[candidates]]]
        ranked = candidates[np.argsort(-self.scores[candidates], kind="stable")]
        _, first = np.unique(self.targets[ranked], return_index=True)
        better = ranked[first]
        labels, hits, kept = self.labels.copy(), self.kinds == _RIGHT, ~chosen
        labels[better] = self.true_labels[self.targets[better]]
        hits[better] = kept[better] = True
        return labels, hits, kept


def find_errors(scenes: Sequence[Scene], num_classes: int) -> Errors:
    """The errors of all scenes; detections in crowd regions of their class are none."""
    kinds, targets, found = [], [], []
    before = 0
    for scene in scenes:
        kind, target = _kinds(scene)
        kinds.append(kind)
        targets.append(np.where(target == NONE, NONE, target + before))
        found.append(np.isin(np.arange(len(scene.true_labels)), scene.partner))
        before += len(scene.true_labels)
    kept = ~np.concatenate([scene.ignored for scene in scenes])
    all_targets, all_found = np.concatenate(targets)[kept], np.concatenate(found)
    return Errors(
        labels=np.concatenate([scene.labels for scene in scenes])[kept],
        scores=np.concatenate([scene.scores for scene in scenes])[kept],
        kinds=np.concatenate(kinds)[kept],
        targets=all_targets,
        true_labels=np.concatenate([scene.true_labels for scene in scenes]),
        found=all_found,
        missed=~all_found & ~np.isin(np.arange(before), all_targets),
        num_classes=num_classes,
    )


def _kinds(scene: Scene) -> tuple[Ints, Ints]:
    """Kinds (D,), and targets (D,) in this scene. Of several kinds that fit a detection, the
    first of: localisation, class, duplicate, background, both.
    """
    own, own_box = _largest(np.where(scene.same_class, scene.iou, 0.0))
    other, other_box = _largest(np.where(scene.same_class, 0.0, scene.iou))
    conditions = {
        Kind.LOCALISATION: (own >= BACKGROUND) & (own < IOU),
        Kind.CLASS: other >= IOU,
        Kind.DUPLICATE: own >= IOU,
        Kind.BACKGROUND: np.maximum(own, other) < BACKGROUND,
    }
    right = scene.partner != NONE
    codes = [_RIGHT, *(_CODE[kind] for kind in conditions)]
    kind = np.select([right, *conditions.values()], codes, _CODE[Kind.BOTH])
    target = np.select(
        [kind == _CODE[Kind.LOCALISATION], kind == _CODE[Kind.CLASS]], [own_box, other_box], NONE
    )
    return kind, target


def _largest(overlap: Floats) -> tuple[Floats, Ints]:
    """The largest of each row (D, G) and its column; 0 and ``NONE`` without columns."""
    if not overlap.shape[1]:
        return np.zeros(len(overlap)), np.full(len(overlap), NONE)
    column = overlap.argmax(axis=1)
    return overlap[np.arange(len(overlap)), column], column
