"""Every family trains over two processes of which one has no boxes."""

from __future__ import annotations

import test_token_detectors as tokens
import torch
import torch.distributed as dist
from test_aux_heads import WORLD, Step
from test_experiment_training import build, small
from tiny import batch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from warm import run_ranks

RECIPES = (
    "conditional_detr_r50_dc5_50e_coco",
    "dab_detr_r50_dc5_50e_coco",
    "dn_detr_r50_dc5_50e_coco",
    "teach_dn_detr_r50_dc5_50e_coco",
    "co_deformable_detr_one_stage_r50_1x_coco",
    "co_conditional_detr_r50_c5_3x_coco",
    "co_dab_detr_r50_c5_3x_coco",
    *tokens.SIZES,
)


def parts(experiment: str) -> tuple[nn.Module, nn.ModuleDict]:
    return tokens.build(experiment) if experiment in tokens.SIZES else build(small(experiment))


def _train(rank: int, folder: str) -> None:
    """Two steps of each; the second one fails if a parameter was left out of the first."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD
    )
    for experiment in RECIPES:
        torch.manual_seed(0)
        model = Step(*parts(experiment))
        wrapped = DistributedDataParallel(model)
        for _ in range(2):
            wrapped.zero_grad()
            wrapped(batch((3, 2) if rank == 0 else (0, 0))).backward()
        trained = [p.grad for p in model.parameters() if p.requires_grad]
        assert all(grad is not None for grad in trained), experiment
        own = torch.stack([grad.norm() for grad in trained if grad is not None])
        first = own.clone()
        dist.broadcast(first, 0)
        assert own.isfinite().all(), experiment
        assert own.any(), experiment
        assert torch.equal(own, first), experiment
    dist.destroy_process_group()


def test_every_family_trains_over_processes_of_which_one_has_no_boxes(tmp_path: object) -> None:
    run_ranks(_train, (str(tmp_path),), WORLD)
