from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from warm import run_ranks

from codetr.errors import UserError
from codetr.loss_terms import LossTerm, total_loss
from codetr.training.loss_meter import FiniteGuard, LossMeter


def term(value: float, weight: float = 1.0) -> LossTerm:
    return LossTerm(torch.tensor(value), weight)


def test_reads_means_of_the_total_its_parts_and_unweighted_terms_and_resets() -> None:
    meter = LossMeter()
    first = {"a/cls": term(1.0, weight=7.0), "a/box": term(4.0), "b/cls": term(2.0, weight=0.5)}
    second = {"a/cls": term(3.0, weight=7.0)}
    meter.update(first, total_loss(first))
    resumed = LossMeter()
    resumed.load_state_dict(meter.state_dict(), torch.device("cpu"))
    resumed.update(second, total_loss(second))
    found = resumed.read()
    terms = {"loss/a/cls": 2.0, "loss/a/box": 4.0, "loss/b/cls": 2.0}
    assert found == {"loss": 16.5, "loss_a": 16.0, "loss_b": 0.5, **terms}
    assert resumed.read() == {}


def _read_on_a_rank(rank: int, folder: Path) -> None:
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    meter = LossMeter()
    own = {"b/own": term(6.0, weight=3.0)} if rank else {}
    for value in (1.0, 3.0 + 4 * rank):
        losses = {"a/cls": term(value, weight=2.0), **own}
        meter.update(losses, total_loss(losses))
    terms = {"loss/a/cls": 3.0, "loss/b/own": 6.0}
    assert meter.read() == {"loss": 15.0, "loss_a": 6.0, "loss_b": 9.0, **terms}
    assert meter.read() == {}
    dist.destroy_process_group()


def test_means_are_over_all_processes_and_parts_add_up_to_the_total(tmp_path: Path) -> None:
    run_ranks(_read_on_a_rank, (tmp_path,), 2)


def test_sums_of_a_version_without_weights_are_left_out() -> None:
    old, step = LossMeter(), {"a/cls": term(1.0, weight=2.0)}
    old.update(step, total_loss(step))
    state = {key: value for key, value in old.state_dict().items() if key != "weights"}
    resumed = LossMeter()
    resumed.load_state_dict(state, torch.device("cpu"))
    assert resumed.read() == {}


def test_keeps_no_graph() -> None:
    value = torch.ones((), requires_grad=True) * 2
    assert not LossMeter().update({"a": LossTerm(value, 1.0)}, value).requires_grad


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_step_is_an_error_that_names_step_and_terms(bad: float) -> None:
    meter, guard = LossMeter(), FiniteGuard()
    guard.check(meter)
    guard.watch(meter.update({"good": term(1.0)}, torch.tensor(1.0)), 6)
    guard.check(meter)
    guard.watch(meter.update({"good": term(1.0), "x/cls": term(bad)}, torch.tensor(bad)), 7)
    with pytest.raises(UserError, match=r"step 7: loss, loss/x/cls\. Lower") as caught:
        guard.check(meter)
    assert "\n" not in str(caught.value)
