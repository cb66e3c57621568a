"""Whole training steps: what waits for the device, what is launched, and whether they are right."""

from __future__ import annotations

import gc
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codetr.structures import Batch
from tools.bench import ours
from tools.bench.contestant import Silent, training_step
from tools.bench.gpu.facts import Facts, kernels, longest
from tools.bench.workload import ModelOptions, make_batch

R50 = "co_dino_5scale_r50_1x_coco"
SMALL = ("model=co_dino_tiny", "aux_heads=[atss,rcnn]")
COMPILED = ((), ("backbone",), ("backbone", "encoder", "decoder"))


def syncs(facts: Facts) -> None:
    """Every place where a real step waits for the device."""
    if not facts.on_gpu:
        facts.skip("waits of a step", "needs a CUDA device; tests count them on a pretended one")
        return
    model = _model(facts, "bf16")
    training_step(model, Silent())
    torch.cuda.synchronize()
    places = _waits(lambda: training_step(model, Silent()))
    facts.tell("waits in a step", f"{places.total()}: {dict(places)}")


def launches(facts: Facts) -> None:
    """Kernels of a step, how much of it the GPU works, and the longest kernels."""
    if not facts.on_gpu:
        facts.skip("kernels of a step", "needs a CUDA device")
        return
    for precision, compiled in (*(("bf16", parts) for parts in COMPILED), ("fp32", ())):
        torch.compiler.reset()
        begun = time.perf_counter()
        model = _model(facts, precision, f"trainer.compile=[{','.join(compiled)}]")

        def step(model: ours.Ours = model) -> None:
            training_step(model, Silent())

        step()
        torch.cuda.synchronize()
        first = time.perf_counter() - begun
        milliseconds = facts.times({"step": step})["step"]
        spans = kernels(step)
        busy = sum(own for _, own in spans)
        name = f"step in {precision}, compiled: {', '.join(compiled) or 'nothing'}"
        facts.tell(
            name,
            f"{milliseconds:.1f} ms, {len(spans)} kernels, GPU busy {busy:.1f} ms "
            f"({busy / milliseconds:.0%}); built and first step {first:.0f} s",
        )
        facts.tell(f"{name}: longest kernels", longest(spans, 14))
        del model, step
        gc.collect()
        torch.cuda.empty_cache()


def train(facts: Facts) -> None:
    """Losses are numbers in every precision, gradients repeatable, a batch is not waited for."""
    for precision in ("fp32", "bf16"):
        model = _model(facts, precision)
        losses = [_loss(model) for _ in range(3)]
        finite = all(map(torch.isfinite, losses))
        values = ", ".join(f"{float(loss):.2f}" for loss in losses)
        facts.check(f"losses of three steps in {precision}", finite, values)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = _gradients(model), _gradients(model)
    finally:
        torch.use_deterministic_algorithms(before)
    same = len(first) == len(second) > 0 and all(map(torch.equal, first, second))
    facts.check("deterministic: twice the same gradients", same, f"{len(first)} of them")
    _transfer(facts)


def _transfer(facts: Facts) -> None:
    """Does the host wait for a batch on its way, while the device still works?"""
    if not facts.on_gpu:
        facts.skip("a batch on its way", "needs a CUDA device")
        return
    device = facts.device
    batch: Batch = make_batch(ModelOptions(batch=2, height=800, width=1333)).map(Tensor.pin_memory)
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    for _ in range(2):  # the first time memory is taken, which waits
        for _ in range(50):
            _ = a @ a
        begun = time.perf_counter()
        batch.to(device, non_blocking=True)
        taken = (time.perf_counter() - begun) * 1e3
        torch.cuda.synchronize()
        whole = (time.perf_counter() - begun) * 1e3
    facts.check("a batch on its way is not waited for", taken < whole / 2,
                f"host {taken:.1f} ms, device {whole:.1f} ms")  # fmt: skip


def _model(facts: Facts, precision: str, *overrides: str) -> ours.Ours:
    """The recipe's model on a GPU; on the CPU a small one of the same parts."""
    options: dict[str, Any] = {"device": facts.device.type, "precision": precision, "batch": 2}
    if facts.on_gpu:
        return ours.from_experiment(R50, ModelOptions(**options, overrides=overrides))
    options |= {"height": 64, "width": 96}
    return ours.from_overrides("small", (*SMALL, *overrides), ModelOptions(**options))


def _loss(model: ours.Ours) -> Tensor:
    """The loss before a step."""
    loss = model.loss()
    loss.backward()
    model.optimizer.step()
    model.optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def _gradients(model: ours.Ours) -> list[Tensor]:
    torch.manual_seed(3)
    model.loss().backward()
    found = [p.grad for p in model.modules.parameters() if p.grad is not None]
    model.optimizer.zero_grad(set_to_none=True)
    return found


def _waits(run: Callable[[], object]) -> Counter[str]:
    """File and line of our code for every wait of a run."""
    found: Counter[str] = Counter()

    def note(*_: Any, **__: Any) -> None:
        frames = [f for f in traceback.extract_stack() if "/codetr/" in f.filename]
        outer = [f for f in frames if "/bench/" not in f.filename]
        place = f"{Path(outer[-1].filename).name}:{outer[-1].lineno}" if outer else "backward"
        found[place] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return found
