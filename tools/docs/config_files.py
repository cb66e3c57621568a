"""Option files of conf/ with their comments: what a configuration reference is made of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from codetr.errors import UserError

_COMMENT = re.compile(r"(?:^|(?<=\s))#\s?(?P<text>.*)$")
_PACKAGE = re.compile(r"^@package (\S+)$")
_GLOBAL = "_global_"
_TARGET = "_target_"
_HOW = (_TARGET, "_partial_", "_convert_")
"""What tells hydra how to build an object."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One key of an option file: its full name on the command line, its default as written (the
    class or function for what is built, empty for a section), and its comment.
    """

    name: str
    default: str
    comment: str


@dataclass(frozen=True, kw_only=True)
class OptionFile:
    """A file of conf/: ``group`` is its folder there ("" at the top), ``about`` the comment it
    begins with, ``defaults`` its entries of the defaults list (with ``name`` "" for a base, as in
    "detr", and the option's text in ``default``), ``settings`` its own keys in order.
    """

    group: str
    name: str
    about: str
    defaults: tuple[Setting, ...]
    settings: tuple[Setting, ...]


@dataclass(frozen=True, kw_only=True)
class _Comment:
    """A comment, the column it begins at, and whether it has the line for itself."""

    text: str
    column: int
    alone: bool


def read_option_files(conf: Path) -> list[OptionFile]:
    """All option files below ``conf``, by group and name. Raises UserError for invalid YAML."""
    paths = sorted(conf.rglob("*.yaml"), key=lambda p: (p.parent.as_posix(), p.name))
    if not paths:
        raise UserError(f"{conf}: holds no .yaml file: give the folder conf/ of the repository")
    return [read_option_file(path, conf) for path in paths]


def read_option_file(path: Path, conf: Path) -> OptionFile:
    """One option file below ``conf``. Raises UserError for invalid YAML."""
    text = path.read_text(encoding="utf-8")
    try:
        root = yaml.compose(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not valid YAML ({error}): repair it") from error
    group = path.parent.relative_to(conf).as_posix().removeprefix(".")
    about, package, length = _header(text)
    prefix = group.replace("/", ".") if package is None else package.removeprefix(_GLOBAL)
    comments = _Comments(text, start=length)
    entries = root.value if isinstance(root, yaml.MappingNode) else []
    defaults: tuple[Setting, ...] = ()
    settings: list[Setting] = []
    for key, value in entries:
        if key.value == "defaults":
            defaults = tuple(_default(item, comments) for item in value.value)
        else:
            settings += _settings(key, value, prefix, comments)
    return OptionFile(
        group=group, name=path.stem, about=about, defaults=defaults, settings=tuple(settings)
    )


class _Comments:
    """The comments of a text from line ``start`` on, by where they stand."""

    def __init__(self, text: str, start: int) -> None:
        self.by_line: dict[int, _Comment] = {}
        for number, line in enumerate(text.splitlines()):
            if number >= start and (found := _COMMENT.search(line)):
                self.by_line[number] = _Comment(
                    text=found["text"].strip(),
                    column=found.start(),
                    alone=not line[: found.start()].strip(),
                )

    def above(self, line: int, column: int) -> list[str]:
        """Comments that stand alone right above a key, in its column."""
        texts: list[str] = []
        while (c := self.by_line.get(line - 1)) and c.alone and c.column == column:
            texts.insert(0, c.text)
            line -= 1
        return texts

    def beside(self, first: int, last: int) -> list[str]:
        """Comments at the end of lines, and what goes on below the last one in its column."""
        own = [self.by_line[n] for n in range(first, last + 1) if n in self.by_line]
        while own and (c := self.by_line.get(last + 1)) and c.alone and c.column == own[-1].column:
            own.append(c)
            last += 1
        return [c.text for c in own]


def _header(text: str) -> tuple[str, str | None, int]:
    """The comment that a file begins with, the package that it names, and the lines of both."""
    lines: list[str] = []
    package = None
    length = 0
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        length += 1
        content = line.removeprefix("#").strip()
        if found := _PACKAGE.match(content):
            package = found[1]
        else:
            lines.append(content)
    return " ".join(lines), package, length


def _default(item: yaml.Node, comments: _Comments) -> Setting:
    line = item.start_mark.line
    beside = " ".join(comments.beside(line, line))
    if isinstance(item, yaml.MappingNode):
        key, value = item.value[0]
        name = key.value.removeprefix("override ").removeprefix("/").split("@")[0]
        return Setting(name=name, default=_flow(value), comment=beside)
    return Setting(name="", default=item.value, comment=beside)


def _settings(
    key: yaml.Node, value: yaml.Node, prefix: str, comments: _Comments
) -> Iterator[Setting]:
    """The key, and all below it; what hydra is told about a section becomes a part of it."""
    name = f"{prefix}.{key.value}" if prefix else key.value
    line = key.start_mark.line
    above = comments.above(line, key.start_mark.column)
    if not _is_section(value):
        last = value.end_mark.line - (value.end_mark.column == 0)
        texts = [*above, *comments.beside(line, max(line, last))]
        yield Setting(name=name, default=_flow(value), comment=" ".join(texts))
        return
    texts, default, inside = [*above, *comments.beside(line, line)], "", []
    for inner, node in value.value:
        if inner.value in _HOW:
            texts += comments.beside(inner.start_mark.line, inner.start_mark.line)
            default = node.value if inner.value == _TARGET else default
        else:
            inside += list(_settings(inner, node, name, comments))
    yield Setting(name=name, default=default, comment=" ".join(texts))
    yield from inside


def _is_section(node: yaml.Node) -> bool:
    """A mapping with lines of its own; one in braces is a value."""
    return isinstance(node, yaml.MappingNode) and not node.flow_style


def _flow(node: yaml.Node) -> str:
    """A value in one line, as one would write it."""
    if isinstance(node, yaml.SequenceNode):
        return "[" + ", ".join(_flow(item) for item in node.value) + "]"
    if isinstance(node, yaml.MappingNode):
        return "{" + ", ".join(f"{k.value}: {_flow(v)}" for k, v in node.value) + "}"
    assert isinstance(node, yaml.ScalarNode)
    return node.value if node.value or node.style else "null"
