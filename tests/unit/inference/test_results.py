"""Files of predictions."""

import csv
from pathlib import Path

import numpy as np
import torch

from codetr.classes import ClassList
from codetr.inference.prediction import Prediction
from codetr.inference.results import CsvFile
from codetr.inference.sources import Frame


def test_no_name_is_a_formula(tmp_path: Path) -> None:
    """Names of files and of classes come from strangers."""
    found = Prediction(
        boxes_xyxy_px=torch.tensor([[-1.0, 0, 4, 4]]),
        scores=torch.tensor([0.5]),
        labels=torch.tensor([0]),
        class_list=ClassList(names=("@class",), category_ids=(1,)),
        size=(8, 8),
        pixels=np.zeros((8, 8, 3), np.uint8),
    )
    file = CsvFile(tmp_path)
    file.add(Frame(name="=1+1.png", image=torch.zeros(3, 8, 8, dtype=torch.uint8)), found)
    file.close()
    with (tmp_path / "predictions.csv").open(newline="") as content:
        _, row = csv.reader(content)
    assert row == ["'=1+1.png", "", "'@class", "0.50000", "-1.00", "0.00", "4.00", "4.00"]
