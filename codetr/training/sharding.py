"""Weights, gradients and the optimiser's state divided among processes (FSDP2: torch's
``fully_shard``; Zhao et al. 2023, "PyTorch FSDP").

Parameters are ``DTensor`` between steps. A step gathers them where they are used: what is
``units`` one by one, all others for the whole of it, so that nothing within a step sees a
``DTensor``. Checkpoints are those of a run whose weights are not divided.
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
from codetr.models.backbones.protocol import OfBlocks

STEPS = ("training_step", "validation_step")
"""Methods that are given gathered weights."""


class ShardedStrategy(DDPStrategy):
    """Processes as in DDP, each of which keeps its part of every weight that is trained, of its
    gradient and of the optimiser's state. Without training each holds the whole model.
    """

    def setup(self, trainer: Trainer) -> None:
        """Raises UserError for a precision that scales the loss: each process would see infinite
        gradients of its own part alone.
        """
        precision = self.precision_plugin
        if isinstance(precision, MixedPrecision) and precision.scaler is not None:
            raise UserError(
                f"trainer.precision={precision.precision}: does not go with trainer=fsdp, which "
                "divides gradients: give trainer.precision=bf16-mixed or 32-true"
            )
        super().setup(trainer)

    def configure_ddp(self) -> None:
        """Divide the weights, in place of DDP's wrapper, before there is an optimiser."""
        assert isinstance(self.model, LightningModule)
        self.divide(self.model)

    def divide(self, module: LightningModule) -> None:
        """Leave this process its part of the parameters of ``module``, which lie on its device and
        are equal on all processes.
        """
        shard(module, init_device_mesh(self.root_device.type, (self.world_size,)))

    def post_backward(self, closure_loss: Tensor) -> None:
        """Average what torch has not."""
        assert self.model is not None
        average_scalars(self.model)

    def on_validation_end(self) -> None:
        """Divide again what ``gather`` has gathered."""
        assert self.model is not None
        release(self.model)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole tensors, on the first process."""
        return whole(super().lightning_module_state_dict())  # type: ignore[no-any-return]

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Whole tensors, on the first process."""
        return whole(super().optimizer_state(optimizer))  # type: ignore[no-any-return]

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's part of whole tensors."""
        states = zip(self.optimizers, checkpoint["optimizer_states"], strict=True)
        divided = [divided_state(state, optimizer) for optimizer, state in states]
        super().load_optimizer_state_dict({"optimizer_states": divided})

    def teardown(self) -> None:
        """Leave divided weights where they are: DDP would move them to the CPU."""
        if self.model is None or not _parts(self.model):
            super().teardown()
            return
        assert self.cluster_environment is not None
        assert self.accelerator is not None
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()


def units(detector: Any) -> list[nn.Module]:
    """What is gathered one at a time: blocks of the backbone, layers of encoder and decoder."""
    backbone = detector.backbone.blocks if isinstance(detector.backbone, OfBlocks) else []
    rest = [getattr(part, "layers", []) for part in (detector.encoder, detector.decoder)]
    return [*backbone, *(layer for layers in rest for layer in layers)]


def shard(module: LightningModule, mesh: DeviceMesh) -> None:
    """Divide the parameters of ``module``, which has a ``detector``, over ``mesh``, in place.
    Scalars are left whole. What is not one of the ``units`` is dropped after the forward pass, too:
    parameters are then ``DTensor`` whenever no step is under way.
    """
    for unit in units(module.detector):
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    scalars = {parameter for parameter in module.parameters() if not parameter.ndim}
    fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=scalars)
    for name in STEPS:
        register_fsdp_forward_method(module, name)


def average_scalars(module: nn.Module) -> None:
    """Make gradients of scalars means over processes, in one reduction. Where batches are
    accumulated, the means of those before stay as they are.
    """
    scalars = [p.grad for p in module.parameters() if not p.ndim and p.grad is not None]
    if scalars:
        means = mean_over_ranks(torch.stack(scalars))
        torch._foreach_copy_(scalars, list(means.unbind()))


def gather(module: nn.Module) -> None:
    """Hold the weights whole until ``release``, so that processes may call the model unequally
    often, in any part and without gradients. Nothing where they are not divided.
    """
    for part in _parts(module):
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()


def release(module: nn.Module) -> None:
    """Undo ``gather``."""
    for part in _parts(module):
        part.set_reshard_after_forward(True, recurse=False)
        part.reshard()


def local(module: nn.Module) -> list[Tensor]:
    """What this process keeps of each parameter, as tensors that share its memory."""
    for part in _parts(module):
        part.reshard()
    return [p.to_local() if isinstance(p, DTensor) else p for p in module.parameters()]


def joined(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be divided; all processes have to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole(value: Any) -> Any:
    """``value`` with the whole of each divided tensor in it, in containers too: on the host of the
    first process, None on the others, which have to ask for it as well.
    """
    if isinstance(value, DTensor):
        full = value.full_tensor()
        return full.cpu() if is_first_rank() else None
    if isinstance(value, Mapping):
        return {key: whole(part) for key, part in value.items()}
    return [whole(part) for part in value] if isinstance(value, list) else value


def _parts(module: nn.Module) -> list[FSDPModule]:
    """Those that gather weights, the whole first."""
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def divided_state(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's state of whole tensors, divided as its parameters are."""
    parameters: Iterator[Tensor] = (p for group in optimizer.param_groups for p in group["params"])
    values = {
        number: {name: _like(value, parameter) for name, value in state["state"][number].items()}
        for number, parameter in enumerate(parameters)
        if number in state["state"]
    }
    return {**state, "state": values}


def _like(value: Any, parameter: Tensor) -> Any:
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(value, mesh, placements, src_data_rank=None)  # all have the whole
