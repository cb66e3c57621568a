"""Every configuration key that a message names exists in a composed configuration.

Messages are read from the source: the texts of all errors, in which dotted words and words before
``=`` are keys; in any other text, dotted words before ``=``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from codetr.conf_folder import conf_folder
from tools.docs.config_files import read_option_files

ROOT = Path(__file__).resolve().parents[2]
CONF = conf_folder()
COMMANDS = ("train", "tune", "eval", "teacher_boxes", "analyse", "inspect_data", "convert")
INFERENCE = ("predict", "export", "info", "zoo")
"""Commands whose own keys are known to ``codetr/inference`` and the scripts alone."""
ZOO = "zoo"
"""The group whose files are tables, not options."""

VALUE = "{}"
"""Stands for a value in a message."""
DOTTED = re.compile(r"(?<![\w./:{}-])[a-z_]\w*(?:\.(?:[a-z_]\w*|\{\}))+(?![\w(/-]|\.\w)")
BARE = re.compile(r"(?<![\w./{}-])[a-z_][\w/]*(?==)")
MODULES = ("codetr.", "timm.", "torch.")
FILES = re.compile(r"\.(csv|ckpt|json|md|onnx|pt2?|pth|py|safetensors|txt|xml|ya?ml|zip)$")


@cache
def known_keys(commands: Sequence[str]) -> frozenset[str]:
    """Dotted names of all nodes and leaves of what the commands compose, and of what the options of
    each group write; and the groups themselves.
    """
    if commands != COMMANDS:
        return known_keys(COMMANDS).union(*map(_composed, commands))
    keys = {path.relative_to(CONF).as_posix() for path in CONF.rglob("*") if path.is_dir()}
    keys |= {group.replace("/", ".") for group in keys}
    keys = keys.union(*map(_composed, commands))
    for file in read_option_files(CONF):
        if file.group not in ("", ZOO):  # the first are the commands
            keys |= {setting.name for setting in file.settings}
    return frozenset(keys)


def _names(node: object, name: str = "") -> set[str]:
    children = node.items() if isinstance(node, dict) else ()
    below = (_names(child, f"{name}.{key}".lstrip(".")) for key, child in children)
    return {name} - {""} | set().union(*below)


def _composed(command: str, *overrides: str) -> set[str]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(command, [*overrides], return_hydra_config=True)
    return _names(OmegaConf.to_container(cfg, resolve=False))


def named_keys(text: str, *, of_error: bool) -> dict[str, list[str]]:
    """Each key that a text names, and the full names that it can stand for: a word alone before
    ``=`` is a key at the top, or lies below or beside a key that the text names in full.
    """
    full = [
        match[0]
        for match in DOTTED.finditer(text)
        if not (FILES.search(match[0]) or match[0].startswith(MODULES))
        and (of_error or text[match.end() :].startswith("="))
    ]
    found = {key: [key] for key in full}
    if of_error:
        above = [key.rpartition(".")[0] for key in full]
        for word in BARE.findall(text):
            found[word] = [word, *(f"{place}.{word}" for place in [*full, *above])]
    return found


def is_known(key: str, known: AbstractSet[str]) -> bool:
    pattern = re.compile(re.escape(key).replace(re.escape(VALUE), r"[^.]+"))
    return key in known or (VALUE in key and any(map(pattern.fullmatch, known)))


def unknown_keys(text: str, *, of_error: bool, commands: Sequence[str] = COMMANDS) -> list[str]:
    named, known = named_keys(text, of_error=of_error), known_keys(commands)
    return [k for k, names in named.items() if not any(is_known(name, known) for name in names)]


def commands_of(path: Path) -> Sequence[str]:
    """Whose keys a module may name."""
    of_inference = path.is_relative_to(ROOT / "codetr/inference") or path.parent.name == "commands"
    return COMMANDS + INFERENCE * of_inference


def messages(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Line, text with ``{}`` for its values, and whether it is an error's."""
    tree = ast.parse(path.read_text("utf-8"))
    documentation = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    errors = {
        id(argument)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _name(node.func).endswith("Error")
        for argument in node.args
    }

    def texts(node: ast.AST, of_error: bool) -> Iterator[tuple[int, str, bool]]:
        of_error = of_error or id(node) in errors
        if id(node) in documentation and isinstance(node, ast.Constant):
            return
        if text := _text(node):
            yield getattr(node, "lineno", 0), text, of_error
            inner = [n.value for n in ast.walk(node) if isinstance(n, ast.FormattedValue)]
        else:
            inner = list(ast.iter_child_nodes(node))
        for child in inner:
            yield from texts(child, of_error)

    yield from texts(tree, False)


def _name(node: ast.expr) -> str:
    return getattr(node, "id", getattr(node, "attr", ""))


def _text(node: ast.AST) -> str:
    """A text as it is written, "" for anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(value) or VALUE for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _text(node.left), _text(node.right)
        return (left or VALUE) + (right or VALUE) if left or right else ""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


SOURCES = sorted(
    path
    for pattern in (
        "codetr/**/*.py",
        "tools/docs/*.py",
        "tools/sweeps/*.py",
        "*.py",
        "scripts/*.py",
    )
    for path in ROOT.glob(pattern)
)


def test_keys_in_messages_exist() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {key}: {text}"
        for path in SOURCES
        for line, text, of_error in messages(path)
        for key in unknown_keys(text, of_error=of_error, commands=commands_of(path))
    ]
    assert wrong == [], "\n".join(wrong)


def test_most_errors_are_read() -> None:
    found = {
        key for p in SOURCES for _, t, e in messages(p) if e for key in named_keys(t, of_error=e)
    }
    assert {"data.root", "ckpt_path", "optimizer.rules.{}", "hydra/launcher"} <= found
    assert len(found) > 60


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("data.root is not set: give data.root=FOLDER", []),
        ("data.rot is not set", ["data.rot"]),
        ("optimizer.rules.{} has no pattern", []),
        ("optimizer.rulers.{} has no pattern", ["optimizer.rulers.{}"]),
        ("train with trainer.precision=32", []),
        ("train with precision=32", ["precision"]),
        ("scheme.group has groups={}, weight={}", []),
        ("scheme.group has groups={}, weigth={}", ["weigth"]),
        ("set evaluation.postprocess.pre_nms=1, or nms=null", []),
        ("give the run's best.ckpt; see timm.list_models(); hydra/launcher=basic", []),
    ],
)
def test_a_made_up_key_is_found(text: str, unknown: list[str]) -> None:
    assert unknown_keys(text, of_error=True) == unknown


def test_keys_of_prediction_are_not_those_of_training() -> None:
    commands = commands_of(ROOT / "codetr/inference/predictor.py")
    assert unknown_keys("predict with precision=32", of_error=True, commands=commands) == []


def test_a_message_is_read_from_source(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        '"""x.y=1"""\ndef f(x):\n    raise UserError(f"{x}: set a.b={x or 1}, " + "c=2")\n'
    )
    assert list(messages(path)) == [(3, "{}: set a.b={}, c=2", True)]
