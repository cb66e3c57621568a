"""Who may import whom, read from the syntax tree.

An import points to a lower level of the table. On the same level it stays within a package,
except where ``SIDEWAYS`` says so. Some packages know even less: ``NARROW``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LEVELS = (
    {
        *("structures", "boxes", "distributed", "errors", "classes", "overrides", "json_text"),
        *("host_copy", "compiled"),
    },
    {"ops", "layers"},
    {"backbones", "necks", "transformers", "heads", "assigners", "criteria"},
    {"detectors", "aux_heads"},
    {"schemes"},
    {"data", "evaluation", "training", "checkpoints"},
    {"inference", "analysis"},
    {"train", "eval", "scripts", "parity", "bench"},
)
LEVEL = {package: level for level, packages in enumerate(LEVELS) for package in packages}
COMMANDS = len(LEVELS) - 1

SIDEWAYS = {
    ("classes", "errors"),
    ("json_text", "errors"),
    ("layers", "ops"),
    ("transformers", "heads"),
    ("training", "data"),
    ("training", "evaluation"),
    ("training", "checkpoints"),
    ("scripts", "parity"),
    ("scripts", "bench"),
    ("bench", "parity"),
    ("analysis", "inference"),
}
"""Imports between two packages of one level."""

PROGRAMS = {"codetr.training.app", "codetr.training.evaluate"}
"""What the commands run: the only modules of training that know the data."""

VALUES = tuple(f"codetr.{module}" for module in LEVELS[0])
NARROW = {
    "data": ("codetr.data", *VALUES),
    "evaluation": ("codetr.evaluation", *VALUES),
    "checkpoints": ("codetr.checkpoints", *VALUES),
}
"""Packages that know only these."""

PROTOCOL_ONLY = {"schemes", "aux_heads", "training"}
"""Packages that know a detector by its protocol, never a concrete one."""

MAX_LINES = 400


def package(module: str) -> str:
    """The row of the table: ``codetr.models.heads.detection`` is ``heads``, ``train`` is itself."""
    parts = module.split(".")
    return parts[1] if parts[0] == "codetr" and len(parts) > 1 else parts[0]


def violation(module: str, imported: str) -> str | None:
    """What is wrong with ``module`` importing ``imported``; None if nothing is."""
    source, target = package(module), package(imported)
    if source not in LEVEL or target not in LEVEL:
        return f"{source if source not in LEVEL else target} is in no level of the table"
    if target == "training" and source != "training" and LEVEL[source] != COMMANDS:
        return "only commands import training"
    if source in NARROW and not f"{imported}.".startswith(tuple(f"{m}." for m in NARROW[source])):
        return f"{source} knows only {', '.join(NARROW[source])}"
    if (
        source in PROTOCOL_ONLY
        and target == "detectors"
        and imported != "codetr.models.detectors.protocol"
    ):
        return f"{source} knows detectors only by codetr.models.detectors.protocol"
    if (source, target) == ("training", "data") and module not in PROGRAMS:
        return f"of training, only {', '.join(sorted(PROGRAMS))} know the data"
    if source == target or LEVEL[target] < LEVEL[source] or (source, target) in SIDEWAYS:
        return None
    return f"level {LEVEL[source]} imports level {LEVEL[target]}"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def exists(module: str) -> bool:
    path = ROOT.joinpath(*module.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def own_imports(path: Path) -> Iterator[str]:
    """Every module of this project that a file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide their level"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if exists(name) else str(node.module) for name in inner]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in {"codetr", "train", "eval"})


SOURCES = sorted(
    [
        *ROOT.glob("codetr/**/*.py"),
        *(ROOT / f"{name}.py" for name in ("train", "eval")),
        *ROOT.glob("scripts/**/*.py"),
    ]
)


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_to_lower_levels(path: Path) -> None:
    module = module_name(path)
    if module == "codetr":
        assert not list(own_imports(path)), "the package itself imports nothing"
        return
    problems = {target: violation(module, target) for target in own_imports(path)}
    assert not {target: problem for target, problem in problems.items() if problem}


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_modules_are_short_and_say_what_they_are(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    assert not text.strip() or ast.get_docstring(ast.parse(text)), "a docstring says what for"


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("codetr.boxes", "codetr.models.layers"),
        ("codetr.models.ops.deformable_attention", "codetr.models.layers.mlp"),
        ("codetr.models.heads.detection", "codetr.models.transformers"),
        ("codetr.supervision.criteria.focal", "codetr.supervision.assigners.hungarian"),
        ("codetr.models.detectors.grouping", "codetr.supervision.schemes.protocol"),
        ("codetr.models.detectors.protocol", "codetr.supervision.aux_heads.protocol"),
        ("codetr.supervision.schemes.one_to_one", "codetr.models.detectors"),
        ("codetr.supervision.schemes.one_to_one", "codetr.models.detectors.deformable_detr"),
        ("codetr.supervision.aux_heads.atss", "codetr.models.detectors.grouping"),
        ("codetr.supervision.schemes.denoising", "codetr.training.losses"),
        ("codetr.data.coco", "codetr.models.layers"),
        ("codetr.data.coco", "codetr.evaluation.coco"),
        ("codetr.evaluation.coco", "codetr.supervision.criteria.focal"),
        ("codetr.training.module", "codetr.data.coco"),
        ("codetr.training.module", "codetr.models.detectors"),
        ("codetr.training.module", "codetr.inference.draw"),
        ("codetr.inference.draw", "codetr.training.losses"),
        ("codetr.helpers", "codetr.boxes"),
    ],
)
def test_the_rules_forbid(module: str, imported: str) -> None:
    assert violation(module, imported)


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("codetr.models.transformers.decoder", "codetr.models.heads.detection"),
        ("codetr.supervision.schemes.denoising", "codetr.models.detectors.protocol"),
        ("codetr.supervision.aux_heads.rcnn", "codetr.supervision.assigners.max_iou"),
        ("codetr.inference.draw", "codetr.evaluation.postprocess"),
        ("codetr.training.app", "codetr.data.datamodule"),
        ("train", "codetr.training.app"),
    ],
)
def test_the_rules_allow(module: str, imported: str) -> None:
    assert violation(module, imported) is None
