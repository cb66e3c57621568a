import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from codetr.models.ops import multi_scale_deformable_attention, use_msda
from codetr.models.ops.msda_reference import Shapes, sample_levels
from tools.bench import op
from tools.bench.baselines import COMPILED, find_compiled
from tools.bench.compiled_op import compiled_op

CASE = op.Case(shapes=((6, 5), (3, 4)), queries=7, dtype=torch.float32, device="cpu", msda="auto")


@pytest.fixture(autouse=True)
def _choice_as_it_was():
    yield
    use_msda("auto", torch.device("cpu"))


def both(path: op.Path, inputs: op.Inputs) -> tuple[Tensor, ...]:
    out = path(inputs[0], CASE.shapes, *inputs[1:])
    return (out, *torch.autograd.grad(out.float().square().sum(), inputs))


def test_all_paths_compute_the_same() -> None:
    use_msda("auto", torch.device("cpu"))
    inputs = op.make_inputs(CASE)
    assert_close(both(multi_scale_deformable_attention, inputs), both(sample_levels, inputs))


def test_inputs_are_what_the_case_says() -> None:
    value, locations, weights = op.make_inputs(CASE)
    assert value.shape == (1, 42, op.HEADS, op.DIM)
    assert locations.shape == (1, 7, op.HEADS, 2, op.POINTS, 2)
    assert_close(weights.sum((-2, -1)), torch.ones(1, 7, op.HEADS))
    encoder = op.case("encoder", op.Options())
    assert op.make_inputs(encoder)[1].shape[1] == 4484
    assert op.case("encoder", op.Options(device="cuda")).dtype == torch.bfloat16


def test_paths_run_equally_often_and_ratios_are_of_what_was_measured() -> None:
    calls: Counter[str] = Counter()

    def named(name: str) -> op.Path:
        def path(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
            calls[name] += 1
            return sample_levels(value, shapes, locations, weights)

        return path

    options = op.Options(repeats=3, memory=False)
    paths = {name: named(name) for name in (op.OURS, op.BASELINE, op.COMPILED)}
    table = op.measure("tiny", CASE, paths, options, ("said",))
    # one to differentiate, one to warm up, three turns; and of a baseline one to see it works
    assert calls == {op.OURS: 5, op.BASELINE: 6, op.COMPILED: 6}
    assert list(table.rows) == [*paths, "ours / grid_sample", "ours / compiled op"]
    for name in paths:
        assert all(cell > 0 for cell in table.rows[name][:3])
        assert table.rows[name][3] == ""
    assert table.notes == ("said",)


def test_a_baseline_that_fails_is_a_note_and_ours_is_measured() -> None:
    def broken(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
        raise RuntimeError("no kernel image\nis available")

    paths = {op.OURS: sample_levels, op.BASELINE: sample_levels, op.COMPILED: broken}
    table = op.measure("tiny", CASE, paths, op.Options(repeats=1, memory=False), ("said",))
    assert list(table.rows) == [op.OURS, op.BASELINE, "ours / grid_sample"]
    assert table.notes == ("said", "compiled op failed: RuntimeError: no kernel image")
    with pytest.raises(RuntimeError, match="no kernel image"):
        op.measure("tiny", CASE, paths | {op.OURS: broken}, op.Options(repeats=1, memory=False), ())


def test_one_table_per_place_says_who_computes_and_that_no_compiled_op_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, COMPILED, None)
    tables = op.run(op.Options(where=("small",), repeats=1, memory=False, msda="torch"))
    assert len(tables) == 1
    assert "420 queries, 420 tokens of 3 levels" in tables[0].title
    assert list(tables[0].rows) == ["ours", "grid_sample", "ours / grid_sample"]
    assert "(as asked)" in tables[0].notes[0]
    assert "was not found: build" in tables[0].notes[1]


def test_a_compiled_op_is_said_to_be_there_or_why_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = ModuleType(COMPILED)
    monkeypatch.setitem(sys.modules, COMPILED, module)
    assert find_compiled("cuda")[0] is module
    found, words = find_compiled("cpu")
    assert found is None
    assert "CUDA alone" in words
    monkeypatch.delitem(sys.modules, COMPILED)
    (tmp_path / f"{COMPILED}.py").write_text("raise ImportError('undefined symbol: x')")
    monkeypatch.syspath_prepend(tmp_path)
    found, words = find_compiled("cuda")
    assert found is None
    assert "does not load: undefined symbol: x" in words


def fake_compiled() -> SimpleNamespace:
    """The compiled module's two functions with its arguments, by the reference."""

    def pairs(shapes: Tensor) -> Shapes:
        return tuple((h, w) for h, w in shapes.tolist())

    def forward(
        value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor, step: int
    ) -> Tensor:
        assert value.dtype == torch.float32
        assert starts.tolist() == [0, 30]
        assert step == 64
        return sample_levels(value, pairs(shapes), locations, weights)

    def backward(
        value: Tensor,
        shapes: Tensor,
        starts: Tensor,
        locations: Tensor,
        weights: Tensor,
        grad: Tensor,
        step: int,
    ) -> tuple[Tensor, ...]:
        inputs = [x.detach().requires_grad_() for x in (value, locations, weights)]
        with torch.enable_grad():
            out = sample_levels(inputs[0], pairs(shapes), *inputs[1:])
        return torch.autograd.grad(out, inputs, grad)

    return SimpleNamespace(ms_deform_attn_forward=forward, ms_deform_attn_backward=backward)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compiled_op_takes_our_arguments(dtype: torch.dtype) -> None:
    value, locations, weights = op.make_inputs(CASE)
    inputs = (value.detach().to(dtype).requires_grad_(), locations, weights)
    found = both(compiled_op(fake_compiled()), inputs)
    assert found[0].dtype == dtype
    assert_close(found, both(sample_levels, inputs))


def test_the_compiled_op_makes_its_levels_on_the_device_once() -> None:
    """Numbers from the host are waited for, and would be a part of its time."""
    value, locations, weights = op.make_inputs(CASE)
    seen: list[tuple[Tensor, Tensor]] = []

    def forward(value: Tensor, shapes: Tensor, starts: Tensor, *rest: object) -> Tensor:
        seen.append((shapes, starts))
        return value

    path = compiled_op(SimpleNamespace(ms_deform_attn_forward=forward))
    for _ in range(2):
        path(value, CASE.shapes, locations, weights)
    (shapes, starts), again = seen
    assert again[0].data_ptr() == shapes.data_ptr()
    assert again[1].data_ptr() == starts.data_ptr()


def test_peak_memory_holds_what_the_baseline_keeps_and_ours_does_not() -> None:
    case = op.case("encoder", op.Options())
    levels, queries = len(case.shapes), sum(h * w for h, w in case.shapes)
    samples = 4 * queries * op.HEADS * op.DIM * levels * op.POINTS
    baseline = op.peak(case, sample_levels)
    assert samples < baseline < 6 * samples
    assert op.peak(case, multi_scale_deformable_attention) < 0.5 * baseline
