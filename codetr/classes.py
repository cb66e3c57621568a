"""The class list: the one source of truth for class counts, names and category ids."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from pathlib import Path

from codetr.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ClassList:
    """Class ``i`` of the model is called ``names[i]`` and has ``category_ids[i]`` in the data.

    Raises UserError where ids repeat or the lengths differ.
    """

    names: tuple[str, ...]
    category_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.category_ids):
            raise UserError(
                f"{len(self.names)} class names but {len(self.category_ids)} category ids: "
                "give one id per name"
            )
        if len(set(self.category_ids)) != len(self.category_ids):
            repeated = sorted({i for i in self.category_ids if self.category_ids.count(i) > 1})
            raise UserError(f"category ids {repeated} stand for several classes: make ids unique")

    def __len__(self) -> int:
        return len(self.names)

    def index(self) -> dict[int, int]:
        """Contiguous class index by category id."""
        return {category: i for i, category in enumerate(self.category_ids)}


def with_ids_of(model: ClassList, data: ClassList) -> ClassList:
    """The model's classes with the category ids of the data; classes that the data lacks get unused
    ids.
    """
    own = dict(zip(data.names, data.category_ids, strict=True))
    free = count(max(data.category_ids, default=0) + 1)
    ids = tuple(own[name] if name in own else next(free) for name in model.names)
    return ClassList(names=model.names, category_ids=ids)


def require_known_classes(data: ClassList, model: ClassList, source: Path) -> None:
    """Raise UserError if the data has a category that the model lacks or has under another name."""
    names = dict(zip(model.category_ids, model.names, strict=True))
    for category, name in zip(data.category_ids, data.names, strict=True):
        if names.get(category) != name:
            known = names.get(category, "nothing")
            raise UserError(
                f"{source}: category {category} is '{name}' but the checkpoint knows it as "
                f"'{known}': evaluate on data with the classes that the model was trained on"
            )
