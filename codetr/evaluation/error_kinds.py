"""Kinds of detection errors and the AP50 that each costs: the TIDE decomposition.

Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020
(arXiv 2008.08115), section 2. Each false positive has one kind, and so has each missed object. The
cost of a kind is the AP50 gained by an oracle that fixes only the errors of that kind.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from codetr.evaluation.matching import IOU, NONE, Bools, Floats, Ints, Scene
from codetr.evaluation.precision_recall import precision_at_recalls

BACKGROUND = 0.1
"""A detection whose IoU with every object is below this is on the background."""


class Kind(Enum):
    """The kinds of errors of TIDE, in the order of its tables."""

    CLASS = "class"
    LOCALISATION = "localisation"
    BOTH = "both"
    DUPLICATE = "duplicate"
    BACKGROUND = "background"
    MISSED = "missed"

    @property
    def meaning(self) -> str:
        """A short description for tables."""
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
_TRUE_POSITIVE = -1


@dataclass(frozen=True, kw_only=True)
class Errors:
    """The errors of all D detections and G objects of a split.

    ``labels``, ``scores`` (D,); ``kinds`` (D,): position in ``Kind``, -1 for a true positive;
    ``targets`` (D,): for class and localisation errors the index of the object, else ``NONE``.
    ``true_labels`` (G,); ``found`` (G,): whether a true positive is matched with the object;
    ``missed`` (G,): whether it is neither found nor a target.
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
        """The number of errors of this kind."""
        if kind is Kind.MISSED:
            return int(self.missed.sum())
        return int((self.kinds == _CODE[kind]).sum())

    def cost(self, kind: Kind) -> float:
        """The AP50 that is gained by fixing this kind alone."""
        return self.ap50({kind}) - self.ap50()

    def ap50(self, fixed: Collection[Kind] = ()) -> float:
        """AP50 after an oracle fixed the errors of some kinds: the mean over classes with objects,
        -1 where there are none.

        A class or localisation error becomes a true positive if its object has none yet (of several
        for one object, the one with the best score) and is removed otherwise. False positives of
        other kinds are removed, and so are missed objects; a class without objects left has AP 1 if
        it has no detections, else 0.
        """
        objects = self.true_labels[~self.missed] if Kind.MISSED in fixed else self.true_labels
        num_true = np.bincount(objects, minlength=self.num_classes)
        labels, hits, kept = self._fix(fixed)
        values = []
        for label in np.unique(self.true_labels):
            own = kept & (labels == label)
            if num_true[label]:
                at = precision_at_recalls(self.scores[own], hits[own], int(num_true[label]))
                values.append(float(at.mean()))
            else:
                values.append(0.0 if own.any() else 1.0)
        return float(np.mean(values)) if values else -1.0

    def _fix(self, fixed: Collection[Kind]) -> tuple[Ints, Bools, Bools]:
        """The detections (D,) with these errors fixed: label, true positive, not removed."""
        chosen = np.isin(self.kinds, [_CODE[kind] for kind in fixed])
        candidates = np.flatnonzero(chosen & (self.targets != NONE))
        candidates = candidates[~self.found[self.targets[candidates]]]
        ranked = candidates[np.argsort(-self.scores[candidates], kind="stable")]
        _, first = np.unique(self.targets[ranked], return_index=True)
        best = ranked[first]
        labels, hits, kept = self.labels.copy(), self.kinds == _TRUE_POSITIVE, ~chosen
        labels[best] = self.true_labels[self.targets[best]]
        hits[best] = kept[best] = True
        return labels, hits, kept


def find_errors(scenes: Sequence[Scene], num_classes: int) -> Errors:
    """The errors of all scenes; ignored detections are left out."""
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
    """Kinds (D,), and targets (D,) as indices of this scene. Where several kinds apply, the first
    of: localisation, class, duplicate, background, both.
    """
    own, own_box = _largest(np.where(scene.same_class, scene.iou, 0.0))
    other, other_box = _largest(np.where(scene.same_class, 0.0, scene.iou))
    conditions = {
        Kind.LOCALISATION: (own >= BACKGROUND) & (own < IOU),
        Kind.CLASS: other >= IOU,
        Kind.DUPLICATE: own >= IOU,
        Kind.BACKGROUND: np.maximum(own, other) < BACKGROUND,
    }
    matched = scene.partner != NONE
    codes = [_TRUE_POSITIVE, *(_CODE[kind] for kind in conditions)]
    kind = np.select([matched, *conditions.values()], codes, _CODE[Kind.BOTH])
    target = np.select(
        [kind == _CODE[Kind.LOCALISATION], kind == _CODE[Kind.CLASS]], [own_box, other_box], NONE
    )
    return kind, target


def _largest(overlap: Floats) -> tuple[Floats, Ints]:
    """The largest value of each row of (D, G) and its column; 0 and ``NONE`` if G is 0."""
    if not overlap.shape[1]:
        return np.zeros(len(overlap)), np.full(len(overlap), NONE)
    column = overlap.argmax(axis=1)
    return overlap[np.arange(len(overlap)), column], column
