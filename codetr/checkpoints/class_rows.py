"""Bringing weights to another class list: which rows of which tensors belong to a class.

Classes are the same where their names are: first exactly, then without regard to case, surrounding
blanks, and the difference of ``_``, ``-`` and blank (``Traffic_Light`` is ``traffic light``); a
name that two classes of the old list share in that reading stands for neither of them.

Every tensor with rows per class is in ``CLASS_ROWS``. (A contract test builds all experiments with
one class more and finds what is not.)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RowLayout = Callable[[int, int], Tensor | None]
"""(number of classes K, number of rows) -> (K, r) indices of each class's rows; None where no rows
of that number can be such. Rows of no class (background) are the same in every list.
"""


def per_anchor(classes: int, rows: int) -> Tensor | None:
    """A x K rows, anchor by anchor: also one row per class."""
    if rows % classes:
        return None
    return torch.arange(rows).view(-1, classes).T


def before_background(classes: int, rows: int) -> Tensor | None:
    """K rows, and the background's at the end."""
    return torch.arange(classes)[:, None] if rows == classes + 1 else None


def per_score(classes: int, rows: int) -> Tensor | None:
    """One row per class; after a softmax, the background's at the end. Any other number is that of
    a layer before it, whose rows belong to no class.
    """
    if rows == classes:
        return torch.arange(rows)[:, None]
    return before_background(classes, rows)


def per_coordinate(classes: int, rows: int) -> Tensor | None:
    """Four rows per class, class by class."""
    return torch.arange(rows).view(-1, 4) if rows == 4 * classes else None


def objectness(classes: int, rows: int) -> Tensor | None:
    """Row 0 says "an object" whatever its class, and stays; the others are never read."""
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
    (_MASKS + r"head\.classify\.[0-2]\.(weight|bias)", per_anchor),  # the last is of all classes
    (_MASKS + r"scoring\.iou\.(weight|bias)", per_anchor),
)
"""Layout of the tensors that a pattern matches as a whole, by their names in a .ckpt."""


def class_layout(name: str, objectness_layer: str | None = None) -> RowLayout | None:
    """The layout of the tensor ``name``; None if it has no rows per class. ``objectness_layer`` is
    the name of the class embedding of encoder proposals that are ranked by objectness.
    """
    if objectness_layer is not None and name.startswith(objectness_layer + "."):
        return objectness
    return next((layout for pattern, layout in CLASS_ROWS if re.fullmatch(pattern, name)), None)


@dataclass(frozen=True, kw_only=True)
class ClassMatch:
    """``source[i]`` is the place in the ``old`` names of what ``new[i]`` is called, None where the
    old list has no such class.
    """

    old: tuple[str, ...]
    new: tuple[str, ...]
    source: tuple[int | None, ...]

    @property
    def identical(self) -> bool:
        """Whether every class stays in its place."""
        return len(self.old) == len(self.new) and self.source == tuple(range(len(self.new)))

    @property
    def copied(self) -> tuple[str, ...]:
        """New names that the old list has."""
        return tuple(n for n, i in zip(self.new, self.source, strict=True) if i is not None)

    @property
    def added(self) -> tuple[str, ...]:
        """New names that the old list lacks."""
        return tuple(n for n, i in zip(self.new, self.source, strict=True) if i is None)

    @property
    def dropped(self) -> tuple[str, ...]:
        """Old names that the new list lacks."""
        return tuple(n for i, n in enumerate(self.old) if i not in self.source)


def match_classes(old: Sequence[str], new: Sequence[str]) -> ClassMatch:
    """Find each of the ``new`` names among the ``old`` ones; see the module for what is equal."""
    if tuple(old) == tuple(new):
        source: tuple[int | None, ...] = tuple(range(len(new)))
    else:
        exact, loose = _places(old), _places([_reading(name) for name in old])
        source = tuple(exact.get(name, loose.get(_reading(name))) for name in new)
    return ClassMatch(old=tuple(old), new=tuple(new), source=source)


def _reading(name: str) -> str:
    """The name without what does not count."""
    return re.sub(r"[\s_-]+", " ", name.strip()).casefold()


def _places(names: Sequence[str]) -> dict[str, int]:
    """Index by name, of the names that occur once."""
    count = Counter(names)
    return {name: i for i, name in enumerate(names) if count[name] == 1}


def copy_class_rows(
    old: Tensor, new: Tensor, layout: RowLayout, match: ClassMatch
) -> Tensor | None:
    """``new`` with the rows of ``old`` for the classes that both have, and for what belongs to no
    class. Both (rows, ...). None where their shapes do not allow it.
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
    """Of ``count`` rows, those of no class."""
    free = torch.ones(count, dtype=torch.bool)
    free[rows.flatten()] = False
    return free.nonzero().flatten()
