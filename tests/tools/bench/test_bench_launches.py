import torch

from tools.bench.launches import OperatorCount


def test_counts_what_runs_forward_and_backward_by_the_part_that_is_open() -> None:
    count, weight = OperatorCount(), torch.randn(3, 3, requires_grad=True)
    with count:
        count.start("forward")
        out = (torch.empty(3, 3).zero_().view(9)[:3] @ weight).relu()  # zero_, mm, relu
        count.start("inner")
        torch._foreach_add([weight.detach(), out.detach()], 1.0)
        count.stop()
        total = out.sum()
        count.stop()
        count.start("backward")
        total.backward()
        count.stop()
    assert count.operators["zero_"] == count.operators["relu"] == count.operators["sum"] == 1
    assert count.parts["inner"] == count.operators["_foreach_add"] == 1
    assert count.parts["backward"] >= 2  # of relu and of the product
    assert not {"empty", "view", "slice", "detach"} & count.operators.keys()
    assert sum(count.parts.values()) == sum(count.operators.values())
