"""Deformable attention, and the RPN's suppression: whether they are right, and how fast."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from itertools import chain, product
from typing import Any

import torch
from torch import Tensor

from codetr.errors import UserError
from codetr.models.ops import multi_scale_deformable_attention, use_msda
from codetr.models.ops.msda_reference import Shapes, sample_levels
from codetr.suppression import AUTO, METHODS, surviving, use_nms
from tools.bench import op
from tools.bench.gpu.facts import Facts, relative_error

LEVELS: Shapes = ((31, 45), (16, 23), (8, 12))
WIDTHS = ((8, 32), (4, 24), (2, 64), (16, 16), (3, 17))
"""Heads and channels of each."""
SIZES = (4000, 4000, 4000, 4000, 2457, 693)
"""Proposals per level of an 800 x 1333 image, in training."""
OVERLAP = 0.7
MANY = 100
"""Images whose values have more than 2^31 elements."""


def kernel(facts: Facts) -> None:
    """The operator against grid_sample in float64, and what else it must stand."""
    facts.tell("deformable attention", use_msda("auto", facts.device))
    if not _has_kernel(facts):
        return
    for dtype, (heads, dim) in product((torch.float32, torch.bfloat16, torch.float16), WIDTHS):
        name = f"{str(dtype).removeprefix('torch.')}, {heads} heads of {dim}"
        _compare(facts, name, _inputs(facts, LEVELS, dtype, heads, dim), LEVELS, torch.float64)
    given = _inputs(facts, LEVELS)
    _deterministic(facts, given)
    leaves = [x.detach().requires_grad_() for x in given[:3]]
    flat = list(chain.from_iterable(LEVELS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own ways
        torch.library.opcheck(torch.ops.codetr.msda, (leaves[0], flat, *leaves[1:]))
    facts.check("torch.library.opcheck", True)
    if not facts.on_gpu:
        for name in ("full size", "beyond 2^31 elements", "torch.compile", "CUDA graph"):
            facts.skip(name, "needs a CUDA device")
        return
    _full_size(facts)
    _compiled(facts)


def tune(facts: Facts) -> None:
    """Milliseconds of the Triton kernels for other layouts: one image, 5 levels, every token asks.

    The best are what ``FORWARD`` and ``BACKWARD`` of ``codetr.models.ops.msda_triton`` should be.
    """
    if not facts.on_gpu:
        facts.skip("layouts of the kernels", "needs a CUDA device")
        return
    from codetr.models.ops import msda_triton as ours

    value, locations, weights, grad = _inputs(facts, op.FULL)
    samples = weights.numel()
    read, added = samples * 4 * op.DIM * 2 / 1e9, samples * 4 * op.DIM * 4 / 1e9
    facts.tell("corners read and atomics, at 2 and 4 bytes", f"{read:.2f} and {added:.2f} GB")
    right = ours.forward(value, op.FULL, locations, weights)
    blocks = ((1, 256), (1, 512), (2, 256), (2, 512), (4, 512), (4, 1024), (4, 2048), (8, 2048))
    for innermost, major, (warps, elements) in product((True, False), (False, True), blocks):
        layout = ours.Layout(elements, warps, innermost, major)
        ahead = partial(ours.forward, value, op.FULL, locations, weights, layout)
        back = partial(ours.backward, grad, value, op.FULL, locations, weights, layout)
        name = (
            f"{warps} warps, {elements} elements, heads {'inner' if innermost else 'outer'}most, "
            f"values {'head' if major else 'token'} by {'head' if major else 'token'}"
        )
        try:
            taken = facts.times({"forward": ahead, "backward": back}, 3)
        except Exception as error:  # too many registers or too much shared memory for this device
            facts.skip(name, f"{type(error).__name__}: {str(error)[:100]}")
            continue
        used = " ".join(
            kind
            for kind, own in (("FORWARD", ours.FORWARD), ("BACKWARD", ours.BACKWARD))
            if own == layout
        )
        facts.tell(
            name,
            f"forward {taken['forward']:.3f} ms ({read / taken['forward']:.2f} TB/s), backward "
            f"{taken['backward']:.3f} ms ({added / taken['backward']:.2f} TB/s) {used}".rstrip(),
        )
        facts.check(f"{name}: right", relative_error(ahead(), right) < 1e-2)


def nms(facts: Facts) -> None:
    """The ways to suppress the RPN's boxes: the same boxes, and milliseconds."""
    sizes = SIZES if facts.on_gpu else tuple(size // 10 for size in SIZES)
    for images, spread in product((1, 2), (20.0, 200.0)):
        boxes, scores = crowd(images, sizes, spread, facts.device)
        paths = {name: partial(_suppressed, name, boxes, scores, sizes) for name in METHODS}
        kept = {name: path() for name, path in paths.items()}
        first, *others = kept.values()
        case = f"{images} images, boxes up to {spread:.0f} px"
        differing = [int((first != other).sum()) for other in others]
        facts.check(
            f"{case}: the same are kept",
            not any(differing),
            f"{int(first.sum())} of {first.numel()}, otherwise {differing}",
        )
        for name, milliseconds in facts.times(paths, 3).items():
            facts.tell(f"{case}: ops.nms={name}", f"{milliseconds:.2f} ms")
    use_nms(AUTO)


def crowd(
    images: int, sizes: Sequence[int], spread: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Boxes (B, T, 4) xyxy of up to ``spread`` + 8 pixels in 900 x 900, and scores (B, T)."""
    random = torch.Generator().manual_seed(0)
    corner = torch.rand(images, sum(sizes), 2, generator=random) * 900
    extent = torch.rand(images, sum(sizes), 2, generator=random) * spread + 8
    scores = torch.rand(images, sum(sizes), generator=random)
    return torch.cat([corner, corner + extent], dim=-1).to(device), scores.to(device)


def _suppressed(name: str, boxes: Tensor, scores: Tensor, sizes: Sequence[int]) -> Tensor:
    use_nms(name)
    return surviving(boxes, scores, sizes, OVERLAP)


def _has_kernel(facts: Facts) -> bool:
    try:
        use_msda("triton" if facts.on_gpu else "numba", facts.device)
    except UserError as error:
        facts.check("a kernel runs here", False, error)
        return False
    finally:
        use_msda("auto", facts.device)
    return True


def _inputs(
    facts: Facts,
    shapes: Shapes,
    dtype: torch.dtype = torch.bfloat16,
    heads: int = op.HEADS,
    dim: int = op.DIM,
) -> tuple[Tensor, ...]:
    """Value, locations, weights, and the gradient of the result."""
    kind = op.Case(shapes=shapes, queries=None, dtype=dtype, device=facts.device.type, msda="auto")
    value, locations, weights = (x.detach() for x in op.make_inputs(kind))
    locations, weights = locations.repeat(1, 1, 2, 1, 1, 1), weights.repeat(1, 1, 2, 1, 1)
    locations, weights = (x[:, :, :heads].contiguous() for x in (locations, weights))
    value = torch.randn(1, value.shape[1], heads, dim, device=facts.device).to(dtype)
    grad = torch.randn(1, locations.shape[1], heads * dim, device=facts.device).to(dtype)
    return value, locations, weights, grad


def _results(path: op.Path, given: tuple[Tensor, ...], shapes: Shapes) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in given[:3]]
    out = path(leaves[0], shapes, *leaves[1:])
    return out, *torch.autograd.grad(out, leaves, given[3])


def _compare(
    facts: Facts, name: str, given: tuple[Tensor, ...], shapes: Shapes, precision: torch.dtype
) -> None:
    """Result and gradients, against grid_sample in ``precision``."""
    found = _results(multi_scale_deformable_attention, given, shapes)
    right = _results(sample_levels, tuple(x.to(precision) for x in given), shapes)
    errors = [relative_error(a, b) for a, b in zip(found, right, strict=True)]
    rough = 1e-5 if given[0].dtype == torch.float32 else 1e-2
    good = max(errors[:2]) < rough and max(errors[2:]) < 1e-3
    facts.check(name, good, "relative errors " + " ".join(f"{e:.1e}" for e in errors))


def _deterministic(facts: Facts, given: tuple[Tensor, ...]) -> None:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (
            _results(multi_scale_deformable_attention, given, LEVELS) for _ in range(2)
        )
    finally:
        torch.use_deterministic_algorithms(before)
    facts.check("deterministic: twice the same bits", all(map(torch.equal, first, second)))


def _full_size(facts: Facts) -> None:
    from codetr.models.ops import msda_triton as ours

    given = _inputs(facts, op.FULL)
    _compare(facts, "full size", given, op.FULL, torch.float32)
    value, locations, weights, _ = given
    few = locations[:, :300], weights[:, :300]
    expected = ours.forward(value, op.FULL, *few)
    many, at, shares = (x.expand(MANY, *x.shape[1:]).contiguous() for x in (value, *few))
    last = ours.forward(many, op.FULL, at, shares)[-1]
    facts.check("beyond 2^31 elements", torch.equal(last, expected[0]))
    del many, at, shares
    torch.cuda.empty_cache()
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            ours.forward(value, op.FULL, *few)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        out = ours.forward(value, op.FULL, *few)
    graph.replay()
    torch.cuda.synchronize()
    facts.check("CUDA graph", torch.equal(out, expected))


def _compiled(facts: Facts) -> None:
    """With sizes that change, which torch.compile then takes as free."""

    def doubled(value: Tensor, shapes: Shapes, *rest: Any) -> Tensor:
        return multi_scale_deformable_attention(value * 2, shapes, *rest)

    compiled = torch.compile(doubled)
    for number in range(3):
        shapes = tuple((h - number, w - 2 * number) for h, w in LEVELS)
        value, locations, weights, _ = _inputs(facts, shapes)
        found = compiled(value, shapes, locations, weights)
        error = relative_error(found, doubled(value, shapes, locations, weights))
        facts.check(f"torch.compile at {shapes[0]}", error < 1e-2, f"{error:.1e}")
