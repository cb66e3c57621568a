"""Divided weights train every family as whole ones do, also where one process has no boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import test_token_detectors as tokens
import test_vit_recipe as vit
import torch
import torch.distributed as dist
from test_aux_heads import WORLD, Step
from test_experiment_training import FAMILIES, build, small
from tiny import batch, composed
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from warm import run_ranks

from codetr.structures import Batch
from codetr.training.sharding import (
    average_scalars,
    full_tensor,
    gather,
    local_shards,
    release,
    shard,
    units,
)

VIT = (*vit.COCO, *vit.SMALL, "model.backbone.body.drop_path=0.1")
RUN_AGAIN = ("model.backbone.body.checkpointed=3", "model.checkpointed=1")
MODELS: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    **{name: partial(lambda name: build(small(name)), name) for name in FAMILIES},
    **{name: partial(tokens.build, name) for name in tokens.SIZES},
    "vit": lambda: vit.build(composed((*VIT, "model.backbone.body.checkpointed=0"))),
    "checkpointed": lambda: vit.build(composed((*VIT, *RUN_AGAIN))),
}
COUNTS = ((3, 2), (0, 0))
"""Boxes of the images of each process."""


class Steps(Step):
    """With those methods of a LightningModule that are given whole weights."""

    def training_step(self, data: Batch) -> Tensor:
        assert not any(isinstance(parameter, DTensor) for parameter in self.schemes.parameters())
        loss: Tensor = self(data)
        return loss

    def validation_step(self, data: Batch) -> Tensor:
        predictions: Any = self.detector(data.images)
        return torch.cat([predictions.logits, predictions.boxes], dim=-1)


def steps(run: Callable[[Batch], Tensor], model: nn.Module, rank: int) -> list[tuple[float, float]]:
    """Last loss and gradient norm of two steps, of which the second one has what the first has
    made, and accumulates two batches as Lightning does: DDP exchanges gradients of the last alone.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)  # Adam magnifies small gradients
    found = []
    for step in range(2):
        torch.manual_seed(10 * step + rank)
        optimizer.zero_grad()
        batches = [batch(COUNTS[own]) for own in (1 - rank, rank)[1 - step :]]
        for number, data in enumerate(batches, start=1):
            with (
                nullcontext() if number == len(batches) else getattr(run, "no_sync", nullcontext)()
            ):
                loss = run(data)
                (loss / len(batches)).backward()
            average_scalars(model)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        found.append((loss.item(), full_tensor(norm).item()))
    return found


def made(name: str) -> Steps:
    torch.manual_seed(0)
    return Steps(*MODELS[name]())


def _compare(rank: int, folder: str, names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD
    )
    mesh = init_device_mesh("cpu", (WORLD,))
    for name in names:
        whole, divided = made(name), made(name)
        parameters = sum(p.numel() for p in divided.parameters())
        shard(divided, mesh)
        own = sum(part.numel() for part in local_shards(divided))
        assert own < 0.6 * parameters, f"{name}: {own} of {parameters} on rank {rank}"
        expected = steps(DistributedDataParallel(whole), whole, rank)
        torch.testing.assert_close(
            steps(divided.training_step, divided, rank), expected, rtol=1e-5, atol=1e-5, msg=name
        )
        for p, q in zip(whole.parameters(), divided.parameters(), strict=True):
            torch.testing.assert_close(full_tensor(q.detach()), p.detach(), rtol=1e-4, atol=1e-5)
        _validate(whole, divided, rank)
    dist.barrier()
    dist.destroy_process_group()


@torch.no_grad()
def _validate(whole: Steps, divided: Steps, rank: int) -> None:
    """The first process alone calls the model."""
    gather(divided)
    assert not any(isinstance(parameter, DTensor) for parameter in divided.parameters())
    if rank == 0:
        data = batch((3, 2))
        for model in (whole, divided):
            model.eval()
        found, expected = divided.validation_step(data), whole.validation_step(data)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    release(divided)
    assert all(isinstance(p, DTensor) for p in divided.parameters() if p.ndim)


def test_layers_that_are_run_again_train_as_those_of_whole_weights(tmp_path: object) -> None:
    run_ranks(_compare, (str(tmp_path), ["checkpointed"]), WORLD)


@pytest.mark.slow
def test_every_family_trains_as_with_whole_weights(tmp_path: object) -> None:
    names = [name for name in MODELS if name != "checkpointed"]
    run_ranks(_compare, (str(tmp_path), names), WORLD)


@pytest.mark.parametrize("name", ["vit", "yolos_s_150e_coco"])
def test_blocks_of_a_transformer_are_units(name: str) -> None:
    detector: Any = MODELS[name]()[0]
    blocks = list(detector.backbone.body.blocks)
    assert units(detector)[: len(blocks)] == blocks
