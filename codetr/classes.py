"""The class list: the one source of truth for class counts, names and category ids."""

from __future__ import annotations

from collections import Counter
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


def with_ids_of(model: ClassList, data: ClassList, source: Path) -> ClassList:
    """The model's classes with the category ids that the data of file ``source`` gives to the same
    names; classes that the data lacks get unused ids. Names may repeat if the ids are the model's.
    Raises UserError for a class of the data that the model lacks, and for a name that does not say
    which class is meant.
    """
    classes = zip(data.names, data.category_ids, strict=True)
    if set(classes) <= set(zip(model.names, model.category_ids, strict=True)):
        return model
    own = dict(zip(data.names, data.category_ids, strict=True))
    in_model, in_data = Counter(model.names), Counter(data.names)
    lacking = [name for name in data.names if name not in in_model]
    if lacking:
        raise UserError(
            f"{source}: the checkpoint has no class '{lacking[0]}': evaluate on data with the "
            "classes that the model was trained on, or give their names by data.classes.rename"
        )
    vague = [name for name in data.names if max(in_data[name], in_model[name]) > 1]
    if vague:
        raise UserError(
            f"{source}: several classes are called '{vague[0]}', in it or in the checkpoint, "
            "and their category ids differ: give them those of the checkpoint"
        )
    free = count(max(data.category_ids, default=0) + 1)
    ids = tuple(own[name] if name in own else next(free) for name in model.names)
    return ClassList(names=model.names, category_ids=ids)
