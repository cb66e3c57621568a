"""The class list: the one source of truth for class counts, names and category ids."""

from __future__ import annotations

from dataclasses import dataclass

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
