"""A reference of conf/ as Markdown: a page per group, with every option, its keys and comments."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from codetr.errors import UserError
from tools.docs.config_files import OptionFile, Setting, read_option_files

INDEX = "index.md"
COMMANDS = "commands.md"
"""The page of the files at the top of conf/, one per command."""

ABOUT = {
    "analysis": "What `scripts/analyse.py` looks at in trained models.",
    "augmentation": "How images are resized, cropped and mirrored, in training and in evaluation.",
    "aux_heads": "Auxiliary heads of the scheme `collaborative`. A list: its length is K.",
    "callbacks": "What watches a run.",
    "checkpointing": "Which checkpoints a run keeps.",
    "criterion": "Other losses for queries. Not in the defaults list, hence the `+`.",
    "data": "Where images and boxes come from, and how batches are made.",
    "debug": "Short runs that check something.",
    "evaluation": "From predictions to detections, and how they are measured.",
    "experiment": "Complete recipes, published but for `finetune` and `finetune_small`.",
    "hydra": "Folders of runs and sweeps.",
    "hydra/job_logging": "What is printed.",
    "hydra/launcher": "Where the jobs of a sweep run.",
    "logger": "Where numbers are written. A list.",
    "masks": "Instance masks of the detector: a head that refines them from its boxes.",
    "model": "The detector, one page each: sizes, and the parts that it is made of.",
    "model/backbone": "Images to feature maps.",
    "model/decoder": "Queries to predictions, layer by layer.",
    "model/encoder": "Feature maps to memory: the tokens that queries look at.",
    "optimizer": "Learning rates, weight decay, and parameter groups.",
    "paths": "Where things are written.",
    "schedule": "How long to train, and how the learning rate falls.",
    "scheme": "What supervises the detector in training. A list: schemes combine.",
    "supervision": "What trains a model beside its schemes; `model` chooses it.",
    "sweep": "Sets of runs, with `-m`.",
    "zoo": "Published weights, `checkpoint=zoo:NAME`: tables that `codetr-zoo` lists.",
    "trainer": "Devices, precision, clipping, validation: Lightning's `Trainer`.",
}
LISTS = ("aux_heads", "logger", "scheme")
UNLISTED = ("criterion",)
TABLES = ("zoo",)
"""Groups whose files are read as they are, and chosen by no option."""

HEAD = """# Configuration

Generated from `conf/` when the site is built. `group=option` on the command line takes an option,
`key=value` sets a key under its full name. `???` must be given; `${key}` is the value of another
key; a class or function as a default is what is built there, from the keys below it.
"""


def reference_pages(conf: Path) -> dict[str, str]:
    """Markdown by file name. Raises UserError for invalid YAML and for a group without text."""
    files = read_option_files(conf)
    groups = {group: list(found) for group, found in groupby(files, key=lambda file: file.group)}
    if unknown := [group for group in groups if group and group not in ABOUT]:
        raise UserError(
            f"{conf / unknown[0]}: a new group: describe it in tools/docs/config_reference.py"
        )
    pages = {page_name(group): _page(group, found) for group, found in groups.items()}
    return {INDEX: _index(groups), **pages}


def page_name(group: str) -> str:
    """The page of a group."""
    return f"{group.replace('/', '-')}.md" if group else COMMANDS


def _index(groups: dict[str, list[OptionFile]]) -> str:
    rows = ["| group | what | options |", "| --- | --- | --- |"]
    for group in filter(None, groups):
        names = " ".join(f"`{file.name}`" for file in groups[group])
        if len(groups[group]) > 12:
            names = f"{len(groups[group])} options"
        rows.append(f"| [{group}]({page_name(group)}) | {ABOUT[group]} | {names} |")
    commands = f"What each command takes by default: [commands]({COMMANDS})."
    return "\n".join([HEAD, commands, "", *rows]) + "\n"


def _page(group: str, files: Sequence[OptionFile]) -> str:
    title, about = (group, ABOUT[group]) if group else ("Commands", "One file per command.")
    note = "How to read this: [index](index.md)."
    sections = [_section(file) for file in files]
    return "\n\n".join([f"# {title}", f"{about} {note}", *sections]) + "\n"


def _section(file: OptionFile) -> str:
    parts = [f"## {file.name}", as_text(file.about)]
    if file.group and file.group not in TABLES:
        parts.append(_how(file))
        chosen = [d for d in file.defaults if d.name]
        lines = [f"- `{d.name}: {d.default}`{_dash(d.comment)}" for d in chosen]
        parts += ["It chooses:\n\n" + "\n".join(lines)] if chosen else []
    else:
        rows = [d for d in file.defaults if d.name]
        bases = [f"`{d.default}.yaml`" for d in file.defaults if not d.name and d.default[0] != "_"]
        parts += [f"Begins as {', '.join(bases)}."] if bases else []
        parts += [_table(("group", "option", "comment"), rows)] if rows else []
    settings = [s for s in file.settings if not s.name.endswith("_target_")]
    parts += [_table(("key", "default", "comment"), settings)] if settings else []
    return "\n\n".join(part for part in parts if part)


def _how(file: OptionFile) -> str:
    """How the option is chosen, what it begins as, and what it builds."""
    option = f"[{file.name}]" if file.group in LISTS else file.name
    sentences = [f"`{'+' * (file.group in UNLISTED)}{file.group}={option}`"]
    bases = [d.default.split("@")[0] for d in file.defaults if not d.name and d.default[0] != "_"]
    if bases:
        links = ", ".join(f"[{base}](#{base})" for base in bases)
        sentences.append(f"begins as {links}")
    built = [s.default for s in file.settings if s.name.endswith("_target_")]
    sentences += [f"builds `{name}`" for name in built]
    return "; ".join(sentences) + "."


def _table(columns: Sequence[str], rows: Sequence[Setting]) -> str:
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    lines += [f"| `{s.name}` | {_code(s.default)} | {as_text(s.comment)} |" for s in rows]
    return "\n".join(lines)


def _code(value: str) -> str:
    """A value in a cell, where a bar would end it."""
    return f"<code>{html.escape(value).replace('|', '&#124;')}</code>" if value else ""


def _dash(comment: str) -> str:
    return f": {as_text(comment)}" if comment else ""


def as_text(comment: str) -> str:
    """A comment as Markdown text that shows what was written; `code` stays code."""
    parts = comment.split("`")
    plain = [re.sub(r"([\\*_\[\]|#])", r"\\\1", html.escape(part, quote=False)) for part in parts]
    return "`".join(p if i % 2 else t for i, (p, t) in enumerate(zip(parts, plain, strict=True)))
