"""Weights, gradients and optimiser state sharded over processes (FSDP2: torch's ``fully_shard``;
Zhao et al. 2023, "PyTorch FSDP").

Parameters are ``DTensor`` between steps. A step gathers the ``units`` one at a time and all other
parameters for its whole length, so that no code within a step sees a ``DTensor``. Checkpoints are
those of an unsharded run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from codetr.distributed import is_first_rank, mean_over_ranks
from codetr.errors import UserError
from codetr.models.backbones.protocol import HasBlocks

STEPS = ("training_step", "validation_step")
"""Methods of the module that run on gathered weights."""


class ShardedStrategy(DDPStrategy):
    """As DDP, but in training each process holds only its shard of the weights, gradients and
    optimiser state. Evaluation alone is not sharded.
    """

    def setup(self, trainer: Trainer) -> None:
        """Raises UserError for a precision with loss scaling: each process would detect infinite
        gradients only in its own shard.
        """
        precision = self.precision_plugin
        if isinstance(precision, MixedPrecision) and precision.scaler is not None:
            raise UserError(
                f"trainer.precision={precision.precision}: is not supported with trainer=fsdp, "
                "which shards gradients: give trainer.precision=bf16-mixed or 32-true"
            )
        super().setup(trainer)

    def configure_ddp(self) -> None:
        """Shard the weights instead of wrapping the model, before the optimiser is created."""
        assert isinstance(self.model, LightningModule)
        self.shard(self.model)

    def shard(self, module: LightningModule) -> None:
        """Shard the parameters of ``module``, in place. They are on the process's device and equal
        on all processes.
        """
        shard(module, init_device_mesh(self.root_device.type, (self.world_size,)))

    def post_backward(self, closure_loss: Tensor) -> None:
        """Average the gradients of scalars, which are not sharded."""
        assert self.model is not None
        average_scalars(self.model)

    def on_validation_end(self) -> None:
        """Undo the ``gather`` of the module's ``on_validation_start``."""
        assert self.model is not None
        release(self.model)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Full tensors, on the first process."""
        return full_state(super().lightning_module_state_dict())  # type: ignore[no-any-return]

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Full tensors, on the first process."""
        return full_state(super().optimizer_state(optimizer))  # type: ignore[no-any-return]

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this process's shards of full tensors."""
        states = zip(self.optimizers, checkpoint["optimizer_states"], strict=True)
        sharded = [sharded_state(state, optimizer) for optimizer, state in states]
        super().load_optimizer_state_dict({"optimizer_states": sharded})

    def teardown(self) -> None:
        """Leave sharded weights on their device; DDP would move them to the CPU."""
        if self.model is None or not _sharded_modules(self.model):
            super().teardown()
            return
        assert self.cluster_environment is not None
        assert self.accelerator is not None
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()


def units(detector: Any) -> list[nn.Module]:
    """The modules gathered one at a time: backbone blocks, encoder layers and decoder layers."""
    backbone = detector.backbone.blocks if isinstance(detector.backbone, HasBlocks) else []
    rest = [getattr(part, "layers", []) for part in (detector.encoder, detector.decoder)]
    return [*backbone, *(layer for layers in rest for layer in layers)]


def shard(module: LightningModule, mesh: DeviceMesh) -> None:
    """Shard the parameters of ``module``, which has a ``detector``, over ``mesh``, in place, except
    scalars. The root module is resharded after the forward pass too, so that all parameters are
    ``DTensor`` between steps.
    """
    for unit in units(module.detector):
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    scalars = {parameter for parameter in module.parameters() if not parameter.ndim}
    fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=scalars)
    for name in STEPS:
        register_fsdp_forward_method(module, name)


def average_scalars(module: nn.Module) -> None:
    """Average the gradients of scalars over processes, in one reduction. With accumulation, the
    gradients of earlier batches are already equal on all processes and do not change.
    """
    scalars = [p.grad for p in module.parameters() if not p.ndim and p.grad is not None]
    if scalars:
        means = mean_over_ranks(torch.stack(scalars))
        torch._foreach_copy_(scalars, list(means.unbind()))


def gather(module: nn.Module) -> None:
    """Gather all weights until ``release``, so that each process may call any part of the model any
    number of times without gradients. Does nothing if they are not sharded.
    """
    for part in _sharded_modules(module):
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()


def release(module: nn.Module) -> None:
    """Undo ``gather``."""
    for part in _sharded_modules(module):
        part.set_reshard_after_forward(True, recurse=False)
        part.reshard()


def local_shards(module: nn.Module) -> list[Tensor]:
    """This process's shard of each parameter, sharing its memory."""
    for part in _sharded_modules(module):
        part.reshard()
    return [p.to_local() if isinstance(p, DTensor) else p for p in module.parameters()]


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor of one that may be sharded. All processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_state(value: Any) -> Any:
    """``value``, a container or a tensor, with each sharded tensor replaced by the full one: on the
    CPU of the first process, by None on the others. All processes must call it.
    """
    if isinstance(value, DTensor):
        full = value.full_tensor()
        return full.cpu() if is_first_rank() else None
    if isinstance(value, Mapping):
        return {key: full_state(part) for key, part in value.items()}
    return [full_state(part) for part in value] if isinstance(value, list) else value


def _sharded_modules(module: nn.Module) -> list[FSDPModule]:
    """The FSDP modules, the root first."""
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def sharded_state(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's state of full tensors, sharded like its parameters."""
    parameters: Iterator[Tensor] = (p for group in optimizer.param_groups for p in group["params"])
    values = {
        number: {
            name: _sharded_like(value, parameter) for name, value in state["state"][number].items()
        }
        for number, parameter in enumerate(parameters)
        if number in state["state"]
    }
    return {**state, "state": values}


def _sharded_like(value: Any, parameter: Tensor) -> Any:
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(value, mesh, placements, src_data_rank=None)  # all ranks have it
