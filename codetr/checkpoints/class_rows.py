"""Adapting weights to another class list: which rows of which tensors belong to a class.

Classes are matched by name: first exactly, then ignoring case, surrounding whitespace, and the
difference between ``_``, ``-`` and space (``Traffic_Light`` is ``traffic light``). If two classes
of the old list have the same name after this normalisation, neither is matched by it.

Every tensor with rows per class is in ``CLASS_ROWS``; a contract test builds all experiments with
one class more and checks that none is missing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RowLayout = Callable[[int, int], Tensor | None]
"""(number of classes K, number of rows) -> (K, r) indices of each class's rows; None if the number
of rows does not fit the layout. Rows of no class (background) are kept for every class list.
"""


def per_anchor(classes: int, rows: int) -> Tensor | None:
    """A x K rows, anchor by anchor; with A = 1 one row per class."""
    if rows % classes:
        return None
    return torch.arange(rows).view(-1, classes).T


def before_background(classes: int, rows: int) -> Tensor | None:
    """K rows, followed by that of the background."""
    return torch.arange(classes)[:, None] if rows == classes + 1 else None


def per_score(classes: int, rows: int) -> Tensor | None:
    """One row per class, and for softmax one of the background at the end. Another number of rows
    means a hidden layer, whose rows belong to no class.
    """
    if rows == classes:
        return torch.arange(rows)[:, None]
    return before_background(classes, rows)


def per_coordinate(classes: int, rows: int) -> Tensor | None:
    """Four rows per class, class by class."""
    return torch.arange(rows).view(-1, 4) if rows == 4 * classes else None


def objectness(classes: int, rows: int) -> Tensor | None:
    """Row 0 is the score of an object of any class and is kept; the others are never read."""
    return torch.arange(1, rows).expand(classes, -1) if rows == classes else None


_MASKS = r"detector\.mask_branch\."
_HEADS = r"schemes\.collaborative\.heads\.\w+\."

CLASS_ROWS: tuple[tuple[str, RowLayout], ...] = (
    (r"detector\.head\.classify\.\d+\.(weight|bias)", per_score),
    (r"schemes\.(query_)?denoising\.label_embedding\.weight", per_anchor),
    (_HEADS + r"cls\.(weight|bias)", per_anchor),
    (_HEADS + r"box_head\.cls\.(weight|bias)", before_background),
    (_HEADS + r"box_head\.reg\.(weight|bias)", per_coordinate),
    (_HEADS + r"mask_head\.classify\.(weight|bias)", per_anchor),
    (_MASKS + r"head\.classify\.[0-2]\.(weight|bias)", per_anchor),  # the last is class-agnostic
    (_MASKS + r"scoring\.iou\.(weight|bias)", per_anchor),
)
"""Layouts of tensors by patterns that match their full names in a .ckpt."""


def class_layout(name: str, objectness_layer: str | None = None) -> RowLayout | None:
    """The layout of the tensor ``name``; None if it has no rows per class. ``objectness_layer`` is
    the name of the class embedding of encoder proposals if these are ranked by objectness.
    """
    if objectness_layer is not None and name.startswith(objectness_layer + "."):
        return objectness
    return next((layout for pattern, layout in CLASS_ROWS if re.fullmatch(pattern, name)), None)


@dataclass(frozen=True, kw_only=True)
class ClassMatch:
    """``source[i]`` is the index in the ``old`` names of the class ``new[i]``, None if the old list
    lacks it.
    """

    old: tuple[str, ...]
    new: tuple[str, ...]
    source: tuple[int | None, ...]

    @property
    def identical(self) -> bool:
        """Whether both lists have the same classes in the same order."""
        return len(self.old) == len(self.new) and self.source == tuple(range(len(self.new)))

    @property
    def copied(self) -> tuple[str, ...]:
        """New names that are in the old list."""
        return tuple(n for n, i in zip(self.new, self.source, strict=True) if i is not None)

    @property
    def added(self) -> tuple[str, ...]:
        """New names that are not in the old list."""
        return tuple(n for n, i in zip(self.new, self.source, strict=True) if i is None)

    @property
    def dropped(self) -> tuple[str, ...]:
        """Old names that are not in the new list."""
        return tuple(n for i, n in enumerate(self.old) if i not in self.source)


def match_classes(old: Sequence[str], new: Sequence[str]) -> ClassMatch:
    """Match the ``new`` names with the ``old`` ones as described in the module."""
    if tuple(old) == tuple(new):
        source: tuple[int | None, ...] = tuple(range(len(new)))
    else:
        exact, loose = _unique_places(old), _unique_places([_normalised(name) for name in old])
        source = tuple(exact.get(name, loose.get(_normalised(name))) for name in new)
    return ClassMatch(old=tuple(old), new=tuple(new), source=source)


def _normalised(name: str) -> str:
    """The name in the form that is compared."""
    return re.sub(r"[\s_-]+", " ", name.strip()).casefold()


def _unique_places(names: Sequence[str]) -> dict[str, int]:
    """Index by name, for names that occur once."""
    count = Counter(names)
    return {name: i for i, name in enumerate(names) if count[name] == 1}


def copy_class_rows(
    old: Tensor, new: Tensor, layout: RowLayout, match: ClassMatch
) -> Tensor | None:
    """``new`` with the rows of ``old`` for the classes that both have, and for rows of no class.
    Both are (rows, ...). None if their shapes are incompatible.
    """
    if old.shape[1:] != new.shape[1:]:
        return None
    if layout is objectness:
        return torch.cat([old[:1].to(new), new[1:]])
    old_rows = layout(len(match.old), len(old))
    new_rows = layout(len(match.new), len(new))
    if old_rows is None or new_rows is None:
        return old if old.shape == new.shape else None  # rows that all classes share
    if old_rows.shape[1] != new_rows.shape[1]:
        return None
    pairs = [(i, k) for i, k in enumerate(match.source) if k is not None]
    places = torch.cat([new_rows[[i for i, _ in pairs]].flatten(), _rest(new_rows, len(new))])
    origin = torch.cat([old_rows[[k for _, k in pairs]].flatten(), _rest(old_rows, len(old))])
    if len(places) != len(origin):
        return None
    result = new.clone()
    result[places] = old[origin].to(new)
    return result


def _rest(rows: Tensor, count: int) -> Tensor:
    """The indices among ``count`` rows that belong to no class."""
    free = torch.ones(count, dtype=torch.bool)
    free[rows.flatten()] = False
    return free.nonzero().flatten()
