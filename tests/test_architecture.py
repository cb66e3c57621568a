"""Who may import whom, read from the syntax tree: the wings of the house, and what each knows."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

CORE = {"values", "models", "supervision"}
KNOWS = {
    "values": set[str](),  # the modules that lie in codetr/ itself
    "models": {"values"},
    "supervision": {"values", "models"},
    "data": {"values"},
    "evaluation": {"values", "data"},
    "checkpoints": {"values"},
    "settings": {"values"},
    "training": {*CORE, "data", "evaluation", "checkpoints", "settings"},
    "inference": {*CORE, "data", "evaluation", "checkpoints", "settings"},
    "analysis": {
        *CORE,
        *("data", "evaluation", "checkpoints", "settings", "inference", "training"),
    },
}
"""What each wing imports; commands and tools import all of it, and nothing imports tools."""

DETECTORS = ("codetr.models.detectors", "codetr.models.detectors.protocol")
"""What is known of detectors outside models: the package is for configurations to build from."""

MAX_LINES = 400


def wing(module: str) -> str:
    """``codetr.models.heads`` is of ``models``, ``codetr.boxes`` of ``values``; ``train``."""
    first, *rest = module.split(".")
    if first != "codetr":
        return first
    return rest[0] if rest and (ROOT / "codetr" / rest[0]).is_dir() else "values"


def violation(module: str, imported: str) -> str | None:
    """What is wrong with ``module`` importing ``imported``; None if nothing is."""
    source, target = wing(module), wing(imported)
    if source not in KNOWS:  # commands and tools
        return None
    if target != source and target not in KNOWS[source]:
        return f"{source} knows only {', '.join(sorted(KNOWS[source])) or 'itself'}"
    concrete = imported.startswith(DETECTORS[0]) and imported != DETECTORS[1]
    if concrete and source in {"supervision", "training"}:
        return f"{source} knows detectors by {DETECTORS[1]} alone"
    return None


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def own_imports(path: Path) -> Iterator[str]:
    """Every module of this project that a file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide their wing"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if _exists(name) else str(node.module) for name in inner]
        else:
            continue
        yield from (n for n in names if n.split(".")[0] in {"codetr", "tools", "train", "eval"})


def _exists(module: str) -> bool:
    path = ROOT.joinpath(*module.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


SOURCES = sorted(
    path for top in ("codetr", "tools", "scripts") for path in ROOT.glob(f"{top}/**/*.py")
)


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_down(path: Path) -> None:
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
        ("codetr.models.detectors.protocol", "codetr.supervision.aux_heads"),
        ("codetr.supervision.schemes.one_to_one", "codetr.models.detectors.deformable_detr"),
        ("codetr.supervision.schemes.denoising", "codetr.training.losses"),
        ("codetr.data.coco", "codetr.evaluation.coco"),
        ("codetr.evaluation.coco", "codetr.supervision.criteria.focal"),
        ("codetr.training.module", "codetr.inference.draw"),
        ("codetr.inference.draw", "codetr.training.losses"),
        ("codetr.models.ops", "tools.bench"),
    ],
)
def test_the_rules_forbid(module: str, imported: str) -> None:
    assert violation(module, imported)


def imports_tools_too_early(text: str) -> bool:
    """Whether a module imports ``tools`` before a statement that changes ``sys.path``."""
    for node in ast.parse(text).body:
        if ast.unparse(node).startswith("sys.path.insert("):
            return False
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "tools":
            return True
    return False


@pytest.mark.parametrize(
    "path", [*ROOT.glob("scripts/*.py"), ROOT / "docs/hooks.py"], ids=lambda path: path.stem
)
def test_scripts_add_the_folder_of_tools_before_they_import_them(path: Path) -> None:
    """Where only the package is installed, python finds ``tools`` in no other way."""
    assert not imports_tools_too_early(path.read_text())


def test_an_early_import_of_tools_is_seen() -> None:
    added, imported = "sys.path.insert(0, 'x')", "from tools.docs import study"
    assert imports_tools_too_early(f"import sys\n{imported}\n{added}\n")
    assert not imports_tools_too_early(f"import sys\n{added}\n{imported}\n")


def test_names_of_test_modules_are_unique() -> None:
    """pytest imports them by name alone: of two, one is not collected."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py")]
    own = [name for name in names if name not in ("conftest.py", "__init__.py")]
    assert [name for name in set(own) if own.count(name) > 1] == []


def test_legends_say_where_they_stand() -> None:
    """matplotlib's search for the best place warns once it takes a second, as on a busy machine."""
    legends = [
        (path, call)
        for folder in ("codetr", "tools", "docs")
        for path in (ROOT / folder).rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "legend"
    ]
    assert len(legends) > 10
    for path, call in legends:
        assert any(given.arg == "loc" for given in call.keywords), f"{path}:{call.lineno}"
