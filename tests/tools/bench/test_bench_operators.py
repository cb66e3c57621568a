from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from codetr.models.ops.msda_reference import sample_levels
from tools.bench.contestant import ASSIGNMENT
from tools.bench.operators import ATTENTION, OTHER, OUTSIDE, Marks, kind, operator_tables

CPU = torch.device("cpu")
PRODUCTS = "matrix products and convolutions"


def event(name: str, *outer: str) -> SimpleNamespace:
    parent = event(outer[0], *outer[1:]) if outer else None
    return SimpleNamespace(name=name, cpu_parent=parent)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("aten::addmm", "aten::linear"), PRODUCTS),
        (("aten::add",), "elementwise and sums"),
        (("aten::mkldnn_convolution", "aten::conv2d"), PRODUCTS),
        (("aten::_scaled_dot_product_flash_attention_for_cpu",), PRODUCTS),
        (("aten::native_layer_norm_backward",), "normalisation"),
        (("aten::grid_sampler_2d_backward",), ATTENTION),
        (("aten::_embedding_bag", "codetr::msda"), ATTENTION),
        (("aten::mul", "aten::add", "codetr::msda_backward"), ATTENTION),
        (("aten::topk",), "selection and indexing"),
        (("aten::topk", ASSIGNMENT), ASSIGNMENT),
        (("aten::copy_", "aten::to"), "copies"),
        (("aten::view",), OTHER),
    ],
)
def test_kinds(names: tuple[str, ...], expected: str) -> None:
    assert kind(event(*names)) == expected


def test_the_tables_add_up_and_find_what_ran() -> None:
    marks = Marks()
    matrix = torch.rand(200, 200)
    value, locations = torch.rand(1, 20, 2, 4), torch.rand(1, 3, 2, 1, 2, 2)

    def run() -> None:
        _ = matrix @ matrix
        F.layer_norm(matrix, (200,))
        sample_levels(value, ((4, 5),), locations, torch.rand(1, 3, 2, 1, 2))
        marks.start("encoder")  # gives no kind
        marks.start(ASSIGNMENT)
        _ = matrix @ matrix
        matrix.topk(3)
        marks.stop()
        marks.stop()

    kinds, largest = operator_tables("tiny", run, CPU, largest=4)
    assert {PRODUCTS, "normalisation", ATTENTION, ASSIGNMENT, OUTSIDE} <= kinds.rows.keys()
    assert "selection and indexing" not in kinds.rows
    shares = [float(str(row[1]).rstrip("%")) for row in kinds.rows.values()]
    assert sum(shares) == pytest.approx(100.0, abs=0.5)
    assert kinds.rows["normalisation"][2] >= 1
    assert len(largest.rows) == 4
    seconds = [row[0] for row in largest.rows.values()]
    assert seconds == sorted(seconds, reverse=True)
