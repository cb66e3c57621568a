"""Weights divided among processes: what one process can tell. tests/contracts has two."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from codetr.errors import UserError
from codetr.training.sharding import ShardedStrategy, full_state, local_shards, sharded_state


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_loss_scaling_is_refused() -> None:
    strategy = ShardedStrategy()
    scaler = torch.amp.GradScaler("cpu")
    strategy.precision_plugin = MixedPrecision("16-mixed", "cuda", scaler)
    with pytest.raises(UserError, match=r"trainer\.precision=16-mixed: .*bf16-mixed"):
        strategy.setup(None)  # type: ignore[arg-type]


@pytest.mark.usefixtures("alone")
def test_states_are_saved_as_full_tensors_and_loaded_as_shards() -> None:
    model = nn.Linear(3, 2)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    written = full_state(model.state_dict())
    assert not any(isinstance(value, DTensor) for value in written.values())
    torch.testing.assert_close(written, expected)

    optimizer.step()
    state = full_state(optimizer.state_dict())
    assert not any(isinstance(v, DTensor) for v in state["state"][0].values())
    again = torch.optim.AdamW(model.parameters(), lr=0.1)
    again.load_state_dict(sharded_state(state, again))
    moments = [value["exp_avg"] for value in again.state_dict()["state"].values()]
    assert all(isinstance(moment, DTensor) for moment in moments)
    torch.testing.assert_close(full_state(again.state_dict()), state)


@pytest.mark.usefixtures("alone")
def test_local_shards_share_memory_with_the_parameters() -> None:
    model = nn.Linear(3, 2)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    with torch.no_grad():
        for part in local_shards(model):
            part.fill_(7.0)
    assert all((value == 7).all() for value in full_state(model.state_dict()).values())
