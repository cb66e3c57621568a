"""The files and tables of a diagnosis."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console

from codetr.evaluation.confusion import Confusion
from codetr.evaluation.diagnosis import PICTURES, Diagnosis, diagnose
from codetr.evaluation.error_kinds import Kind
from codetr.evaluation.figures import confusion_figure, f1_figure
from codetr.evaluation.ground_truth import ImageTruth
from codetr.evaluation.precision_recall import THRESHOLDS

NAMES = ("[cat] $1$", "狗", "never there")
BOX = [10.0, 10, 40, 40]
FAR = [200.0, 200, 40, 40]


def truth(labels: list[int], boxes: list[list[float]]) -> ImageTruth:
    return ImageTruth(
        boxes_xywh_px=torch.tensor(boxes, dtype=torch.float64),
        labels=torch.tensor(labels),
        crowd=torch.zeros(len(labels), dtype=torch.int64),
        area=torch.full((len(labels),), 1600.0, dtype=torch.float64),
    )


@pytest.fixture
def found() -> Diagnosis:
    """Of two cats, one is found and one is taken for a dog; the dog is missed."""
    rows = torch.tensor([[0, 0.9, *BOX], [1, 0.8, *FAR]], dtype=torch.float64)
    nothing = torch.zeros(0, 6, dtype=torch.float64)
    true = {4: truth([0, 0], [BOX, FAR]), 9: truth([1], [BOX])}
    return diagnose({9: nothing, 4: rows}, true, NAMES, 100)


def test_summary(found: Diagnosis, tmp_path: Path) -> None:
    found.write(tmp_path)
    content = json.loads((tmp_path / "diagnosis.json").read_text())
    best = content["best_threshold"]
    assert best["threshold"] == 0.45, "in the middle of what gives the same"
    assert best["f1"] == pytest.approx((2 / 3 + 0) / 2)
    assert set(content["per_class"]) == set(NAMES[:2])
    assert content["per_class"][NAMES[0]]["recall"] == 0.5
    assert content["AP50"] == pytest.approx(51 / 101 / 2)
    numbers = {kind: own["number"] for kind, own in content["errors"].items()}
    assert {kind: n for kind, n in numbers.items() if n} == {"class": 1, "missed": 1}
    assert content["errors"]["class"]["AP50_lost"] == pytest.approx(found.errors.cost(Kind.CLASS))


def test_curves_and_matrix_as_tables(found: Diagnosis, tmp_path: Path) -> None:
    pictures = found.write(tmp_path)
    assert [path.name for path in pictures] == list(PICTURES)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)

    def table(name: str) -> list[list[str]]:
        with (tmp_path / name).open(newline="", encoding="utf-8") as file:
            return list(csv.reader(file))

    head, *rows = table("f1.csv")
    assert head == ["threshold", "mean of all", *NAMES[:2]]
    assert len(rows) == len(THRESHOLDS)
    assert rows[-21] == ["0.9", "0.0", "0.0", "0.0"]
    assert rows[-22] == ["0.895", "0.3333", "0.6667", "0.0"]
    head, *rows = table("precision_recall.csv")
    assert head[0] == "recall"
    assert rows[50] == ["0.5", "0.5", "1.0", "0.0"]
    assert table("confusion_matrix.csv") == [
        ["true", *NAMES, "missed"],
        [NAMES[0], "1", "1", "0", "0"],
        [NAMES[1], "0", "0", "0", "1"],
        [NAMES[2], "0", "0", "0", "0"],
        ["background", "0", "0", "0", "0"],
    ]


def test_printed_tables(found: Diagnosis) -> None:
    console = Console(width=100, record=True)
    console.print(found.error_table())
    console.print(found.confusion_table())
    nothing = Confusion(counts=np.eye(4, dtype=np.int64), threshold=0.5)
    assert replace(found, confusion=nothing).confusion_table() is None
    text = console.export_text()
    assert "[cat] $1$" in text
    assert "50.0%" in text
    assert all(kind.value in text for kind in Kind)
    assert "at threshold=0.450 " in found.threshold_line()


def texts(figure: Figure) -> list[str]:
    (axes,) = figure.axes
    return [label.get_text() for label in axes.get_yticklabels()]


def test_matrix_of_many_classes_shows_the_most_confused() -> None:
    names = [f"c{i}" for i in range(100)]
    counts = np.zeros((101, 101), dtype=np.int64)
    counts[np.arange(70, 90), np.arange(50, 70)] = 1
    counts[np.arange(70, 80), np.arange(50, 60)] = 2
    figure = confusion_figure(Confusion(counts=counts, threshold=0.5), names)
    shown = [*range(50, 60), *range(70, 80)]
    assert texts(figure) == [*(names[i] for i in shown), "background"]
    assert "20 most confused of 100" in figure.axes[0].get_title()


def test_many_curves_have_one_name(found: Diagnosis) -> None:
    few = f1_figure(found.curves, NAMES)
    assert len(few.legends[0].get_texts()) == 3
    rows = torch.tensor([[0, 0.9, *BOX]], dtype=torch.float64)
    true = {1: truth(list(range(30)), [BOX] * 30)}
    many = diagnose({1: rows}, true, [str(i) for i in range(30)], 100)
    labels = [text.get_text() for text in f1_figure(many.curves, many.names).legends[0].get_texts()]
    assert labels[0] == "each of 30 classes"
    assert len(labels) == 2
