"""Changing the classes of annotation files: selecting, merging and renaming them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from codetr.data.coco_json import read_categories, require_lists, unused_parents
from codetr.data.derived import read_content, write_derived
from codetr.data.formats.content import one_line, short_repr
from codetr.data.json_columns import as_integer, as_label
from codetr.data.sources import Splits
from codetr.errors import UserError, abbreviated

_OF_IMAGES = ("neg_category_ids", "not_exhaustive_category_ids")
"""Keys of LVIS images with lists of categories."""


@dataclass(frozen=True, kw_only=True)
class ClassChoice:
    """``rename``: new names by names in the data; ``merge``: lists of names in the data by the name
    of the merged class; ``keep``: the classes to keep, by either name (None: all). Objects of other
    classes are dropped.
    """

    keep: Sequence[Any] | None = None
    merge: Mapping[Any, Sequence[Any]] | None = None
    rename: Mapping[Any, Any] | None = None

    @property
    def changes_nothing(self) -> bool:
        """Whether the classes stay those of the data."""
        return self.keep is None and not self.merge and not self.rename

    def of(self, names: Sequence[str]) -> dict[str, str]:
        """New names of the kept classes by their names in the data. Raises UserError for names that
        are not in the data, and for classes that get the same name without being merged.
        """
        known = list(dict.fromkeys(names))
        new = {name: name for name in known}
        for old, name in (self.rename or {}).items():
            new[_known(old, known, "rename")] = _written(name)
        taken = {name: old for old, name in new.items()}
        if len(taken) < len(new):
            twice = next(n for old, n in new.items() if taken[n] != old)
            raise UserError(
                f"data.classes.rename gives the name {short_repr(twice)} to several classes: "
                f"make them one with data.classes.merge={{{twice}: [NAME, NAME]}}"
            )
        for name, members in (self.merge or {}).items():
            if isinstance(members, str):
                raise UserError(f"data.classes.merge: {short_repr(name)} needs a list of names")
            for old in members:
                new[_known(old, known, "merge")] = _written(name)
        if self.keep is None:
            return new
        both = list(dict.fromkeys([*new.values(), *known]))
        kept = {_known(name, both, "keep") for name in self.keep}
        if not kept:
            raise UserError("data.classes.keep=[]: keep at least one class, or give null for all")
        return {old: name for old, name in new.items() if kept & {old, name}}

    def merged(self) -> set[str]:
        """Names of merged classes."""
        return {_written(name) for name in self.merge or {}}


def _written(value: Any) -> str:
    """The name that a user gave, which the command line may have parsed as another type."""
    return "null" if value is None else one_line(as_label(value) or "")


def _known(value: Any, names: Sequence[str], key: str) -> str:
    name = _written(value)
    if name not in names:
        near = get_close_matches(name, names, 1, 0.0)
        raise UserError(
            f"data.classes.{key}: the data has no class {short_repr(name)}: did you mean "
            f"{short_repr(near[0]) if near else 'none'}? It has {len(names)}: "
            f"{abbreviated(names, 12)}"
        )
    return name


def with_classes(splits: Splits, choice: ClassChoice, folder: Path) -> Splits:
    """The splits with annotation files of the chosen classes, written below ``folder``; unchanged
    splits if there is no choice. Ids are kept; a merged class has the smallest id of its members.
    """
    if choice.changes_nothing:
        return splits
    contents = {
        split.annotations: require_lists(read_content(split.annotations), split.annotations)
        for split in (splits.train, splits.val)
    }
    names: dict[int, str] = {}
    for path, content in contents.items():
        names |= read_categories(content, path)
    annotated = {as_integer(a.get("category_id")) for c in contents.values() for a in _dicts(c)}
    used = annotated - {None}
    for parent in unused_parents(list(contents.values()), names, used):  # type: ignore[arg-type]
        del names[parent]
    new = choice.of([names[i] for i in sorted(names)])
    ids: dict[int, int] = {}
    first: dict[str, int] = {}
    for i in sorted(i for i, name in names.items() if name in new):
        name = new[names[i]]
        ids[i] = first.setdefault(name, i) if name in choice.merged() else i
    remarks: list[str] = []
    done = {
        path: write_derived(folder, path, _edited(content, path, names, new, ids, remarks))
        for path, content in contents.items()
    }
    train, val = (replace(s, annotations=done[s.annotations]) for s in (splits.train, splits.val))
    return replace(splits, train=train, val=val, remarks=(*splits.remarks, *remarks))


def _dicts(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [entry for entry in content["annotations"] if isinstance(entry, dict)]


def _edited(
    content: Mapping[str, Any],
    path: Path,
    names: Mapping[int, str],
    new: Mapping[str, str],
    ids: Mapping[int, int],
    remarks: list[str],
) -> dict[str, Any]:
    annotations, dropped = [], 0
    for entry in content["annotations"]:
        number = as_integer(entry.get("category_id")) if isinstance(entry, dict) else None
        if number is not None and number in ids:
            annotations.append({**entry, "category_id": ids[number]})
        elif number in names:
            dropped += 1
        else:
            annotations.append(entry)  # invalid: reported when it is read
    images = [
        {**image, **{k: _mapped(image[k], ids) for k in _OF_IMAGES if k in image}}
        if isinstance(image, dict)
        else image
        for image in content["images"]
    ]
    categories = {ids[i]: new[names[i]] for i in sorted(ids, reverse=True)}
    others = {as_integer(c["id"]): c for c in content["categories"] if isinstance(c, dict)}
    kept = [
        {k: v for k, v in others.get(i, {}).items() if k != "supercategory"} | {"id": i, "name": n}
        for i, n in sorted(categories.items())
    ]
    remarks.append(
        f"{path.name}: {len(kept)} classes by data.classes, {dropped} objects of others dropped"
    )
    return {**content, "images": images, "annotations": annotations, "categories": kept}


def _mapped(numbers: Any, ids: Mapping[int, int]) -> Any:
    if not isinstance(numbers, list):
        return numbers
    return list(dict.fromkeys(ids[i] for i in numbers if i in ids))
