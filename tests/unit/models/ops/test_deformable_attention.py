"""Deformable attention against recorded numbers, a loop over every point and grid_sample, and
the operator against what torch.library asks of one."""

import itertools
import os
import re
import runpy
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from codetr.errors import UserError
from codetr.models.ops import (
    deformable_attention,
    msda_cpu,
    multi_scale_deformable_attention,
    use_msda,
)
from codetr.models.ops.msda_reference import Shapes, sample_levels

SHAPES = ((4, 3), (2, 5))
CPU = torch.device("cpu")
RECORD = Path(__file__).parents[3] / "golden" / "msda" / "io.npz"


@pytest.fixture(autouse=True)
def _undecided() -> Iterator[None]:
    yield
    use_msda("auto", CPU)


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    value = torch.randn(2, 22, 2, 3, dtype=dtype)
    locations = torch.rand(2, 4, 2, 2, 3, 2, dtype=dtype) * 1.6 - 0.3  # some lie outside
    weights = torch.rand(2, 4, 2, 6, dtype=dtype).softmax(-1).view(2, 4, 2, 2, 3)
    return value, locations, weights


def tap(level: Tensor, x: int, y: int) -> Tensor:
    """A value of a (H, W, D) map, zero outside it."""
    height, width, dim = level.shape
    inside = 0 <= x < width and 0 <= y < height
    return level[y, x] if inside else level.new_zeros(dim)


def naive(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    batch, queries, heads, _, points, _ = locations.shape
    out = value.new_zeros(batch, queries, heads, value.shape[-1])
    starts = np.cumsum([0] + [h * w for h, w in SHAPES])
    for b, q, h, (i, shape), p in itertools.product(
        range(batch), range(queries), range(heads), enumerate(SHAPES), range(points)
    ):
        level = value[b, starts[i] : starts[i + 1], h].view(*shape, -1)
        x = float(locations[b, q, h, i, p, 0]) * shape[1] - 0.5
        y = float(locations[b, q, h, i, p, 1]) * shape[0] - 0.5
        left, top = int(np.floor(x)), int(np.floor(y))
        for dx, dy in itertools.product((0, 1), (0, 1)):
            share = (1 - abs(x - left - dx)) * (1 - abs(y - top - dy))
            out[b, q, h] += weights[b, q, h, i, p] * share * tap(level, left + dx, top + dy)
    return out.flatten(2)


def assert_like_reference(
    value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor, atol: float = 1e-12
) -> None:
    """Result and all gradients of the operator are those of grid_sample."""
    assert deformable_attention._has_operator("cpu")
    grad = torch.randn(*locations.shape[:2], value.shape[2] * value.shape[3], dtype=value.dtype)
    results = []
    for function in (multi_scale_deformable_attention, sample_levels):
        leaves = [x.detach().clone().requires_grad_() for x in (value, locations, weights)]
        out = function(leaves[0], shapes, *leaves[1:])
        out.backward(grad)
        results.append((out.detach(), *(leaf.grad for leaf in leaves)))
    for ours, expected in zip(*results, strict=True):
        assert_close(ours, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("choice", ["numba", "torch"])
def test_equals_the_loop(choice: str) -> None:
    use_msda(choice, CPU)
    value, locations, weights = inputs()
    ours = multi_scale_deformable_attention(value, SHAPES, locations, weights)
    assert_close(ours, naive(value, locations, weights), rtol=0, atol=1e-12)


def test_gradients() -> None:
    arguments = [x.requires_grad_() for x in inputs()]
    assert torch.autograd.gradcheck(
        lambda v, x, w: multi_scale_deformable_attention(v, SHAPES, x, w), arguments
    )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    sizes=st.tuples(*(st.integers(low, 4) for low in (1, 0, 1, 1, 1))),
    shapes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=5),
    spread=st.sampled_from([0.5, 1.5, 1e3, 1e20]),
)
def test_any_shape_equals_reference(
    seed: int, sizes: tuple[int, ...], shapes: list[tuple[int, int]], spread: float
) -> None:
    """``sizes``: images, queries (none too), heads, points, channels per head."""
    batch, queries, heads, points, dim = sizes
    draw = torch.Generator().manual_seed(seed)
    tokens, grid = sum(h * w for h, w in shapes), (batch, queries, heads, len(shapes), points)
    value = torch.randn(batch, tokens, heads, dim, dtype=torch.float64, generator=draw)
    locations = torch.rand(*grid, 2, dtype=torch.float64, generator=draw) - 0.5
    weights = torch.randn(*grid, dtype=torch.float64, generator=draw)
    assert_like_reference(value, tuple(shapes), locations * spread + 0.5, weights)


def test_exactly_on_borders_and_pixels() -> None:
    """Powers of two, so that no rounding moves a point off its pixel or off the border."""
    shapes = ((2, 4),)
    steps = torch.arange(-4, 14, dtype=torch.float64) / 2  # pixels -2 to 6.5
    pixels = torch.cartesian_prod(steps, steps)
    locations = (pixels + 0.5) / torch.tensor([4.0, 2.0], dtype=torch.float64)
    locations = locations.view(1, -1, 1, 1, 1, 2)
    value = torch.randn(1, 8, 1, 3, dtype=torch.float64)
    assert_like_reference(value, shapes, locations, torch.rand(locations.shape[:-1]).double())


def test_strided_inputs() -> None:
    value, locations, weights = inputs()
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (value, locations, weights)]
    assert not any(x.is_contiguous() for x in strided)
    assert_like_reference(strided[0], SHAPES, *strided[1:])


def test_what_is_not_a_number_stays_with_its_query() -> None:
    value, locations, weights = inputs()
    locations[0, 1, 0, 1, 2, 0] = float("nan")
    found = multi_scale_deformable_attention(value, SHAPES, locations, weights).isnan()
    assert found[0, 1, :3].all()
    assert found.sum() == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_summed_in_float32(dtype: torch.dtype) -> None:
    value, locations, weights = inputs(torch.float32)
    value = value.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = multi_scale_deformable_attention(value, SHAPES, locations, weights)
    exact = sample_levels(value.detach().float(), SHAPES, locations, weights)
    assert_close(ours, exact.to(dtype), rtol=0, atol=0)
    ours.float().sum().backward()
    assert value.grad is not None
    assert value.grad.dtype == dtype


def test_half_locations_are_not_computed_with() -> None:
    value, locations, weights = (x.bfloat16() for x in inputs())
    ours = multi_scale_deformable_attention(value, SHAPES, locations, weights)
    exact = multi_scale_deformable_attention(value, SHAPES, locations.float(), weights.float())
    assert_close(ours, exact, rtol=0, atol=0)


def test_levels_must_make_up_the_tokens() -> None:
    value, locations, weights = inputs()
    with pytest.raises(ValueError, match=r"levels .* do not make up 22 tokens"):
        multi_scale_deformable_attention(value, ((4, 3), (5, 5)), locations, weights)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # its own
def test_the_operator_is_what_torch_asks_of_one() -> None:
    value, locations, weights = (x.requires_grad_() for x in inputs())
    flat = [4, 3, 2, 5]
    torch.library.opcheck(torch.ops.codetr.msda, (value, flat, locations, weights))
    grad = torch.randn(2, 4, 6, dtype=torch.float64)
    detached = [x.detach() for x in (value, locations, weights)]
    torch.library.opcheck(torch.ops.codetr.msda_backward, (grad, detached[0], flat, *detached[1:]))


def test_nothing_is_kept_but_the_inputs() -> None:
    value, locations, weights = (x.requires_grad_() for x in inputs())
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        multi_scale_deformable_attention(value, SHAPES, locations, weights)
    assert {x.data_ptr() for x in kept} == {x.data_ptr() for x in (value, locations, weights)}


class Layer(torch.nn.Module):
    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return multi_scale_deformable_attention(value, SHAPES, locations, weights).relu()


def test_export_sees_one_node() -> None:
    program = torch.export.export(Layer(), inputs())
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert torch.ops.codetr.msda.default in calls
    assert not any("embedding" in str(call) or "grid" in str(call) for call in calls)
    other = inputs()
    assert_close(program.module()(*other), Layer()(*other))


def test_onnx_gets_operations_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    program = torch.export.export(Layer(), inputs())
    assert not any("codetr" in str(node.target) for node in program.graph.nodes)


def test_compiles_without_a_break_to_the_same_gradients() -> None:
    leaves = [x.requires_grad_() for x in inputs()]
    compiled = torch.compile(Layer(), backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(Layer()(*leaves).sum(), leaves)
    assert_close(torch.autograd.grad(compiled(*leaves).sum(), leaves), expected)


def test_checkpointing_gives_the_same_gradients() -> None:
    leaves = [x.requires_grad_() for x in inputs()]
    expected = torch.autograd.grad(Layer()(*leaves).sum(), leaves)
    out = checkpoint(Layer(), *leaves, use_reentrant=False)
    assert_close(torch.autograd.grad(out.sum(), leaves), expected)


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ("auto", "Numba kernel on cpu"),
        ("numba", "Numba kernel on cpu"),
        ("torch", "PyTorch, grid_sample per level on cpu (as asked)"),
    ],
)
def test_the_choice_says_what_runs(choice: str, says: str) -> None:
    assert use_msda(choice, CPU) == says


def test_a_machine_without_numba_is_said_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deformable_attention, "HAS_NUMBA", False)
    assert "grid_sample per level on cpu (numba is not installed" in use_msda("auto", CPU)
    assert not deformable_attention._has_operator("cpu")
    with pytest.raises(UserError, match=r"ops.msda=numba cannot run: numba is not installed"):
        use_msda("numba", CPU)


def big(width: int) -> tuple[Tensor, Shapes, Tensor, Tensor]:
    """Enough work for several threads."""
    shapes = ((24, 20), (12, 10))
    value = torch.randn(1, 600, 4, width, requires_grad=True)
    locations = (torch.rand(1, 3000, 4, 2, 4, 2) * 1.2 - 0.1).requires_grad_()
    weights = torch.rand(1, 3000, 4, 2, 4, requires_grad=True)
    return value, shapes, locations, weights


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    value, shapes, locations, weights = big(32)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            out = multi_scale_deformable_attention(value, shapes, locations, weights)
            leaves = (value, locations, weights)
            found.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    finally:
        torch.set_num_threads(before)
    for one, three in zip(*found, strict=True):
        assert torch.equal(one, three)


@pytest.mark.parametrize("width", [16, 24, 32, 64])
def test_head_widths(width: int) -> None:
    """Those compiled as constants, and another."""
    value, shapes, locations, weights = (
        x.detach().double() if isinstance(x, Tensor) else x for x in big(width)
    )
    assert_like_reference(value, shapes, locations, weights)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own() -> None:
    before = torch.get_num_threads()
    given = big(32)
    try:
        torch.set_num_threads(2)
        expected = msda_cpu.forward(*given).numpy()
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # it would wait forever for threads that its parent has
            found = msda_cpu.forward(*given).numpy()
            os._exit(0 if np.array_equal(found, expected) else 1)  # torch's threads are gone too
        assert os.waitpid(child, 0)[1] == 0
    finally:
        torch.set_num_threads(before)


def test_it_is_importable_where_there_is_no_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "register_at_fork", raising=False)
    assert "forward" in runpy.run_path(msda_cpu.__file__)


def test_triton_where_it_cannot_run_is_an_error() -> None:
    with pytest.raises(UserError, match=r"ops.msda=triton cannot run: Triton needs a CUDA"):
        use_msda("triton", CPU)
    with pytest.raises(UserError, match=r"ops.msda=numba cannot run: numba needs a CPU, not cuda"):
        use_msda("numba", torch.device("cuda"))
    with pytest.raises(UserError, match=r"ops.msda=cuda: no such choice: take one of auto"):
        use_msda("cuda", CPU)


def test_a_gpu_without_triton_is_said_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deformable_attention, "HAS_TRITON", False)
    gpu = torch.device("cuda")
    assert "grid_sample per level on cuda (Triton is not installed" in use_msda("auto", gpu)
    with pytest.raises(UserError, match="Triton is not installed, `pip install triton`"):
        use_msda("triton", gpu)


@pytest.mark.parametrize(("capability", "runs"), [((6, 1), False), ((8, 0), True)])
def test_an_old_gpu_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], runs: bool
) -> None:
    monkeypatch.setattr(deformable_attention, "HAS_TRITON", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(deformable_attention, "_failure", lambda device: None)
    says = use_msda("auto", torch.device("cuda"))
    assert says.startswith("Triton kernel on cuda") is runs
    assert ("this device has 6.1" in says) is not runs
    assert deformable_attention._has_operator("cuda") is runs


@pytest.mark.parametrize("choice", ["auto", "triton"])
def test_a_gpu_whose_kernels_cannot_be_built_is_said_aloud(
    choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on machines without a C compiler, where Triton's first launch fails."""
    msda_triton = pytest.importorskip("codetr.models.ops.msda_triton", exc_type=ImportError)

    def fail(device: torch.device) -> None:
        raise RuntimeError("\nFailed to find C compiler. Please specify via CC\nmore")

    monkeypatch.setattr(msda_triton, "run_smallest", fail)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    says = r"RuntimeError: Failed to find C compiler\. Please specify via CC\); Triton needs a C"
    gpu = torch.device("cuda")
    if choice == "triton":
        with pytest.raises(UserError, match=f"ops.msda=triton cannot run: .*{says}"):
            use_msda(choice, gpu)
    else:
        found = use_msda(choice, gpu)
        assert re.search(f"PyTorch, grid_sample per level on cuda .*{says}", found)
        assert not deformable_attention._has_operator("cuda")


@pytest.mark.golden
@pytest.mark.parametrize("choice", ["numba", "torch"])
@pytest.mark.parametrize("case", [0, 2])
def test_recorded_numbers(case: int, choice: str) -> None:
    use_msda(choice, CPU)
    recorded = np.load(RECORD)

    def array(name: str) -> Tensor:
        return torch.from_numpy(recorded[f"case{case}/{name}"])

    value, locations, weights = (
        array(name).double().requires_grad_() for name in ("value", "loc", "att")
    )
    shapes = tuple((int(h), int(w)) for h, w in array("shapes"))
    out = multi_scale_deformable_attention(value, shapes, locations, weights)
    out.backward(array("grad_out").double())
    assert_close(out.detach(), array("out").double(), rtol=0, atol=1e-10)
    for ours, name in ((value, "grad_value"), (locations, "grad_loc"), (weights, "grad_att")):
        difference = (ours.grad - array(name).double()).abs()
        if case == 0 and name == "grad_loc":
            difference[0, 1, 1, 1, 0, 1] = 0  # on a pixel centre: one-sided, see its README
        assert difference.max() < 1e-10, name
