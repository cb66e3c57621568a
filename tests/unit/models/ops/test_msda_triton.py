"""The Triton kernels against grid_sample in float64.

They run on a GPU where there is one, and in any case in Triton's interpreter on the CPU, which
must be chosen before Triton is imported: ``test_in_the_interpreter`` runs this file again.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from codetr.models.ops.msda_reference import Shapes, sample_levels

pytest.importorskip("triton", reason="Triton is not installed: it comes with CUDA builds of torch")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
SHAPES = ((4, 3), (2, 5))
RECORD = Path(__file__).parents[3] / "golden" / "msda" / "io.npz"

on_kernel = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(),
    reason="no GPU: run by test_in_the_interpreter instead",
)
outside = pytest.mark.skipif(INTERPRETED, reason="not for the run within the interpreter")


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def inputs(
    value: torch.dtype,
    precision: torch.dtype = torch.float32,
    shapes: Shapes = SHAPES,
    sizes: tuple[int, int, int, int, int] = (2, 5, 2, 2, 16),
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value, locations (some outside), weights and gradient; ``sizes``: images, queries, heads,
    points, channels per head."""
    batch, queries, heads, points, dim = sizes
    grid = (batch, queries, heads, len(shapes), points)
    tokens = sum(h * w for h, w in shapes)
    tensors = (
        torch.randn(batch, tokens, heads, dim).to(value),
        torch.rand(*grid, 2).to(precision) * 1.6 - 0.3,
        torch.rand(*grid).to(precision),
        torch.randn(batch, queries, heads * dim).to(value),
    )
    return tuple(x.to(DEVICE) for x in tensors)  # type: ignore[return-value]


def results(
    value: Tensor,
    shapes: Shapes,
    locations: Tensor,
    weights: Tensor,
    grad: Tensor,
    changes: Mapping[str, Any] | None = None,
) -> tuple[Tensor, ...]:
    """The kernels' result and the gradients of value, locations and weights, with ``changes`` to
    the layouts. The interpreter pays for every element, and small blocks are several.
    """
    from codetr.models.ops import msda_triton as kernels

    small = {"elements": 256} if INTERPRETED else {}
    ahead, back = (
        replace(layout, **small, **(changes or {}))
        for layout in (kernels.FORWARD, kernels.BACKWARD)
    )
    out = kernels.forward(value, shapes, locations, weights, ahead)
    return out, *kernels.backward(grad, value, shapes, locations, weights, back)


def expected(
    value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor, grad: Tensor
) -> tuple[Tensor, ...]:
    """The same from grid_sample, in float64."""
    leaves = [x.detach().double().requires_grad_() for x in (value, locations, weights)]
    out = sample_levels(leaves[0], shapes, *leaves[1:])
    return out.detach(), *torch.autograd.grad(out, leaves, grad.double())


def assert_like_reference(
    arguments: tuple[Tensor, ...],
    shapes: Shapes = SHAPES,
    eps: float | None = None,
    changes: Mapping[str, Any] | None = None,
) -> None:
    """Within ``eps`` of the largest number of each tensor, by default a few of its last bits."""
    value, locations, weights, grad = arguments
    like = (grad, value, locations, weights)
    found = results(value, shapes, locations, weights, grad, changes)
    right = expected(value, shapes, locations, weights, grad)
    for ours, theirs, source in zip(found, right, like, strict=True):
        assert (ours.dtype, ours.shape) == (source.dtype, theirs.shape)
        atol = (eps or 16 * torch.finfo(ours.dtype).eps) * float(theirs.abs().max())
        assert_close(ours.double(), theirs, rtol=0, atol=atol)


@on_kernel
def test_the_smallest_run_goes_through_and_tables_are_kept() -> None:
    from codetr.models.ops import msda_triton

    device = torch.device(DEVICE)
    msda_triton.run_smallest(device)
    table = msda_triton._level_table(SHAPES, device)
    assert table.tolist() == [[4, 3, 0], [2, 5, 12]]
    assert msda_triton._level_table(SHAPES, device) is table


@on_kernel
@pytest.mark.parametrize(
    ("value", "dim"),
    [
        (torch.float32, 16),
        (torch.float32, 24),
        (torch.float16, 24),
        (torch.float16, 32),
        (torch.bfloat16, 16),
        (torch.bfloat16, 64),
    ],
)
def test_dtypes_and_head_widths(value: torch.dtype, dim: int) -> None:
    """Locations and weights are float32, and so accurate are their gradients."""
    assert_like_reference(inputs(value, sizes=(1, 3, 2, 2, dim)))


@on_kernel
def test_float64_is_exact() -> None:
    assert_like_reference(inputs(torch.float64, torch.float64), eps=1e-14)


@on_kernel
@pytest.mark.parametrize(
    ("shapes", "sizes"),
    [
        (((1, 1),), (1, 1, 1, 1, 16)),
        (((3, 2),), (3, 70, 1, 1, 16)),  # blocks of rows that span images
        (((5, 4), (3, 2), (2, 1), (1, 1), (1, 3)), (1, 4, 3, 3, 17)),
    ],
)
def test_levels_points_and_padding(shapes: Shapes, sizes: tuple[int, int, int, int, int]) -> None:
    assert_like_reference(inputs(torch.float32, shapes=shapes, sizes=sizes), shapes)


LAYOUTS = [
    {"heads_innermost": innermost, "head_major": major}
    for innermost in (False, True)
    for major in (False, True)
]


@on_kernel
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("changes", LAYOUTS, ids=lambda c: ",".join(k for k in c if c[k]))
def test_layouts_give_the_same(
    changes: Mapping[str, bool], fixed: bool, request: pytest.FixtureRequest
) -> None:
    """With blocks that span images and lack rows and channels at their ends."""
    if fixed:
        request.getfixturevalue("deterministic")
    assert_like_reference(inputs(torch.float32, sizes=(3, 7, 3, 2, 17)), changes=changes)


@on_kernel
def test_the_tuner_measures_every_layout_and_checks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from tools.bench import op
    from tools.bench.gpu import facts, operator

    class OnGpu(facts.Facts):
        on_gpu = True

        def times(self, paths: Any, repeats: int = 5) -> dict[str, float]:
            return {name: path() is not None for name, path in paths.items()}

    monkeypatch.setattr(op, "FULL", ((2, 1),))  # the interpreter pays for every element
    told = OnGpu(torch.device(DEVICE), lambda line: None)
    operator.tune(told)
    verdicts = [verdict for verdict, _ in told.found.values()]
    assert (verdicts.count("ok"), verdicts.count("fact")) == (32, 33)
    used = " ".join(value for _, value in told.found.values())
    assert used.count("FORWARD") == used.count("BACKWARD") == 1


@on_kernel
def test_exactly_on_borders_and_pixels() -> None:
    """Powers of two, so that no rounding moves a point off its pixel or off the border."""
    steps = torch.arange(-4, 14, dtype=torch.float64) / 2
    locations = torch.cartesian_prod(steps, steps) + 0.5
    locations = locations / torch.tensor([4.0, 2.0])
    locations = locations.view(1, -1, 1, 1, 1, 2).to(DEVICE)
    value, _, _, grad = inputs(
        torch.float64, torch.float64, ((2, 4),), (1, locations.shape[1], 1, 1, 16)
    )
    weights = torch.ones(locations.shape[:-1], dtype=torch.float64, device=DEVICE)
    assert_like_reference((value, locations, weights, grad), ((2, 4),), eps=1e-14)


@on_kernel
def test_far_outside_is_zero_and_what_is_not_a_number_shows() -> None:
    value, locations, weights, grad = inputs(torch.float32)
    locations[0, 0] = torch.tensor([1e30, -1e30])
    locations[1, 2, 1, 0, 0, 1] = float("nan")
    found = results(value, SHAPES, locations, weights, grad)
    assert not found[0][0, 0].any()
    assert not found[2][0, 0].any()
    assert found[0].isnan().sum() == 16
    assert found[0][1, 2, 16:].isnan().all()


@on_kernel
def test_strided_inputs() -> None:
    tensors = inputs(torch.float32)
    strided = tuple(x.transpose(0, 1).contiguous().transpose(0, 1) for x in tensors)
    assert not any(x.is_contiguous() for x in strided)
    assert_like_reference(strided)


@on_kernel
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize(
    ("value", "scale"), [(torch.float32, 1e-12), (torch.float32, 1e12), (torch.bfloat16, 1.0)]
)
def test_deterministic_sums_do_not_depend_on_the_order(value: torch.dtype, scale: float) -> None:
    """Queries in another order are summed in another order, to the same bits."""
    tokens, locations, weights, grad = inputs(value)
    grad = grad * scale
    assert_like_reference((tokens, locations, weights, grad))
    order = torch.randperm(grad.shape[1], device=DEVICE)
    first = results(tokens, SHAPES, locations, weights, grad)[1]
    second = results(tokens, SHAPES, locations[:, order], weights[:, order], grad[:, order])[1]
    assert_close(first, second, rtol=0, atol=0)


@on_kernel
@pytest.mark.usefixtures("deterministic")
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # of numpy
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_deterministic_sums_show_overflow(bad: float) -> None:
    """A gradient scaler must see it, although integers have no such number."""
    tokens, locations, weights, grad = inputs(torch.float32)
    grad[0, 0, 0] = bad
    assert not results(tokens, SHAPES, locations, weights, grad)[1].isfinite().any()


@on_kernel
@pytest.mark.parametrize("fixed", [False, True])
def test_no_queries(fixed: bool, request: pytest.FixtureRequest) -> None:
    if fixed:
        request.getfixturevalue("deterministic")
    value, locations, weights, grad = inputs(torch.float32, sizes=(2, 0, 2, 2, 16))
    out, grad_value, *_ = results(value, SHAPES, locations, weights, grad)
    assert out.shape == (2, 0, 32)
    assert not grad_value.any()


@on_kernel
@pytest.mark.golden
@pytest.mark.parametrize("case", [0, 2])
def test_recorded_numbers(case: int) -> None:
    recorded = np.load(RECORD)
    names = ("value", "loc", "att", "grad_out", "out", "grad_value", "grad_loc", "grad_att")
    arrays = [torch.from_numpy(recorded[f"case{case}/{name}"]).to(DEVICE) for name in names]
    shapes = tuple((int(h), int(w)) for h, w in recorded[f"case{case}/shapes"])
    value, locations, weights, grad = arrays[:4]
    found = results(value, shapes, locations, weights, grad)
    for name, ours, theirs in zip(names[4:], found, arrays[4:], strict=True):
        difference = (ours - theirs).abs()
        if case == 0 and name == "grad_loc":
            difference[0, 1, 1, 1, 0, 1] = 0  # on a pixel centre: one-sided, see its README
        assert difference.max() < 1e-10, name


@outside
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_takes_the_kernel() -> None:
    from codetr.models.ops import multi_scale_deformable_attention, use_msda

    assert use_msda("auto", torch.device("cuda")) == "Triton kernel on cuda"
    value, locations, weights, _ = inputs(torch.bfloat16)
    leaves = (value.requires_grad_(), [4, 3, 2, 5], locations.requires_grad_(), weights)
    torch.library.opcheck(torch.ops.codetr.msda, leaves)
    out = multi_scale_deformable_attention(value, SHAPES, locations, weights)
    assert_close(out, results(value, SHAPES, locations, weights, out)[0], rtol=0, atol=0)


def compiled_for(capability: int, name: str, sums: str, layout: Any) -> str:
    """PTX of a kernel for Co-DINO's sizes; ``sums``: the type of the values' gradient."""
    from triton import compile as build
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from codetr.models.ops import msda_triton

    kernel = getattr(msda_triton, name)
    pointers = dict.fromkeys(("value", "out", "grad_out"), "*bf16")
    pointers |= dict.fromkeys(("locations", "weights", "unit"), "*fp32")
    pointers |= dict.fromkeys(("grad_locations", "grad_weights"), "*fp32")
    pointers |= {"levels": "*i32", "grad_value": f"*{sums}"}
    types = pointers | dict.fromkeys(msda_triton.SIZES, "i32")
    signature = {argument: types.get(argument, "constexpr") for argument in kernel.arg_names}
    constants = {"HEADS": 8, "DIM": 32, "LEVELS": 5, "POINTS": 4}
    constants |= {"BLOCK_ROWS": layout.elements // 32, "BLOCK_DIM": 32}
    constants |= {"HEADS_INNERMOST": layout.heads_innermost, "HEAD_MAJOR": layout.head_major}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, argument in enumerate(kernel.arg_names)
        if argument in pointers
    }
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    options = {"enable_fp_fusion": True, "num_warps": layout.warps}
    made = build(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx: str = made.asm["ptx"]
    return ptx


@outside
@pytest.mark.parametrize("name", ["_forward", "_backward"])
@pytest.mark.parametrize("changes", [{}, {"heads_innermost": False, "head_major": True}], ids=str)
@pytest.mark.parametrize(("capability", "sums"), [(80, "fp32"), (90, "fp32"), (90, "i64")])
def test_compiles_for_a_gpu_that_is_not_here(
    name: str,
    changes: Mapping[str, bool],
    capability: int,
    sums: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is spilled to local memory, pixels are read 16 bytes at a time, all four around a
    point before the first atomic, and on Hopper there is no barrier.
    """
    from codetr.models.ops import msda_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    layout = msda_triton.FORWARD if name == "_forward" else msda_triton.BACKWARD
    code = compiled_for(capability, name, sums, replace(layout, **changes))
    assert "st.local" not in code
    assert ("bar.sync" in code) <= (capability < 90)
    read = "ld.global.v4.b32"
    assert read in code
    if name == "_backward":
        loop = code[code.index(read, code.index(read) + 1) :]  # the first read is of the gradient
        assert loop[: loop.index(".relaxed.add.")].count(read) == 4
        assert loop.count(read) == 4
    else:
        assert ".relaxed.add." not in code


@outside
def test_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
