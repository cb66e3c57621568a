"""Tables and figures as files."""

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from codetr.analysis.findings import (
    Findings,
    log_findings,
    markdown,
    mean,
    pictures,
    write_findings,
)
from codetr.analysis.subject import names_of
from codetr.errors import UserError
from codetr.training.csv_logger import CsvLogger

FOUND = Findings(
    columns=("checkpoint", "layer", "share"),
    rows=(("a|b", 1, 0.25), ("c", 2, None)),
    notes=("what it is",),
    figures={"curve": Figure()},
    series={"more": [1, 2]},
)


def test_files_hold_what_was_found(tmp_path: Path) -> None:
    numbers, page, picture = write_findings(FOUND, "thing", {"a|b": "x.ckpt"}, tmp_path / "new")
    content = json.loads(numbers.read_text())
    assert content["rows"][0] == {"checkpoint": "a|b", "layer": 1, "share": 0.25}
    assert content["rows"][1]["share"] is None
    assert (content["checkpoints"], content["more"]) == ({"a|b": "x.ckpt"}, [1, 2])
    text = page.read_text()
    assert "| a\\|b | 1 | 0.2500 |\n| c | 2 | - |" in text
    assert f"({picture.name})" in text
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_loggers_get_the_numbers_by_name(tmp_path: Path) -> None:
    logger = CsvLogger(tmp_path)
    log_findings(FOUND, "thing", [], [logger])
    (row,) = logger.read()
    assert row["thing/a|b/share"] == "0.25"
    assert "thing/c/share" not in row


def test_a_table_of_nothing_has_its_heading() -> None:
    assert markdown(("a", "b"), []) == "| a | b |\n| --- | --- |"


def test_the_mean_is_of_numbers() -> None:
    assert mean([1.0, float("nan"), 3.0]) == 2.0
    assert mean([float("nan")]) is None


def test_every_picture_is_drawn_once() -> None:
    drawn: list[str] = []
    rows = [[lambda axes, n=n: drawn.append(n) for n in pair] for pair in ("ab", "cd")]
    pictures(["one", "$two"], rows)
    assert drawn == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["runs/a/best.ckpt"], ["a"]),
        (["runs/a/best.ckpt", "runs/b/best.ckpt"], ["a", "b"]),
        (["runs/a/best.ckpt", "runs/a/last.ckpt"], ["best", "last"]),
        (
            ["runs/a/best.ckpt", "runs/a/last.ckpt", "runs/b/last.ckpt"],
            ["a/best", "a/last", "b/last"],
        ),
        (["x/a/b.ckpt", "y/a/b.ckpt"], ["x/a/b.ckpt", "y/a/b.ckpt"]),
        (["runs/a/best.ckpt", "runs/a/epochs/epoch_000.ckpt"], ["best", "epoch_000"]),
        (["runs/a/epochs/e0.ckpt", "runs/b/epochs/e0.ckpt"], ["a", "b"]),
        (["zoo:one", "zoo:two"], ["zoo:one", "zoo:two"]),
    ],
)
def test_names_tell_checkpoints_apart(sources: list[str], names: list[str]) -> None:
    assert names_of(sources) == names


def test_a_checkpoint_given_twice_is_an_error() -> None:
    with pytest.raises(UserError, match=r"checkpoint=a\.ckpt: given twice"):
        names_of(["a.ckpt", "a.ckpt"])
