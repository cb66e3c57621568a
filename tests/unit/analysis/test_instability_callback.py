"""Instability measured in training, on matching that is made up."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from codetr.analysis import instability_callback
from codetr.analysis.instability import Matched
from codetr.analysis.instability_callback import MatchingInstability
from codetr.errors import UserError
from codetr.supervision.assigners import HungarianMatcher

ANCHORS = torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2], [0.8, 0.8, 0.2, 0.2]])
STAYS = torch.tensor([[0, 1, -1], [0, 1, -1]])
SWAPPED = torch.tensor([[0, 1, -1], [-1, 1, 0]])


class Module:
    """What the callback asks of the module that is trained."""

    def __init__(self) -> None:
        self.logged: dict[str, float] = {}
        self.detector = SimpleNamespace(num_layers=2)
        self.schemes = nn.ModuleDict({"one_to_one": HungarianMatcher(2, 5, 2)})

    def log_dict(self, values: dict[str, Any], **_: Any) -> None:
        self.logged = {name: float(value) for name, value in values.items()}


def trainer(ranks: int = 1, other: torch.Tensor | None = None) -> Any:
    """Of ``ranks`` processes, of which the others add ``other`` to what is reduced."""
    strategy = SimpleNamespace(
        root_device=torch.device("cpu"),
        reduce=lambda value, reduce_op: value + (0 if other is None else other),
    )
    state = SimpleNamespace(fn="fit")
    return SimpleNamespace(state=state, sanity_checking=False, world_size=ranks, strategy=strategy)


def validate(
    callback: MatchingInstability,
    objects: list[torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    anchors: torch.Tensor = ANCHORS,
    of: Any = None,
) -> dict[str, float]:
    """A validation with a batch per image; returns what is logged."""
    module, of = Module(), of or trainer()
    for image, own in enumerate(objects):
        seen = [Matched(own, anchors)]
        monkeypatch.setattr(instability_callback, "match_queries", lambda *_, seen=seen: seen)
        batch = SimpleNamespace(infos=(SimpleNamespace(image_id=image),))
        callback.on_validation_batch_end(of, module, None, batch, image)  # type: ignore[arg-type]
    callback.on_validation_epoch_end(of, module)  # type: ignore[arg-type]
    return module.logged


def test_numbers_are_means_over_images_of_the_validation_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    callback = MatchingInstability()
    assert validate(callback, [STAYS, STAYS], monkeypatch) == {}, "there is none before the first"
    assert validate(callback, [STAYS, SWAPPED], monkeypatch) == {
        "matching/layer0/IS": 0,
        "matching/layer1/IS": 1,
        "matching/layer0/order_free_IS": 0,
        "matching/layer1/order_free_IS": 1,
    }
    assert validate(callback, [STAYS, SWAPPED], monkeypatch)["matching/layer1/IS"] == 0


def test_equal_anchors_have_no_order_free_number(monkeypatch: pytest.MonkeyPatch) -> None:
    callback, same = MatchingInstability(), torch.full((3, 2), 0.5)
    validate(callback, [STAYS], monkeypatch, same)
    found = validate(callback, [SWAPPED], monkeypatch, same)
    assert found == {"matching/layer0/IS": 0, "matching/layer1/IS": 2}


def test_no_more_images_are_looked_at_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    callback = MatchingInstability(images=2)
    of = trainer(ranks=2)
    validate(callback, [STAYS, STAYS], monkeypatch, of=of)
    found = validate(callback, [STAYS, SWAPPED], monkeypatch, of=of)
    assert found["matching/layer1/IS"] == 0, "one image for each of two ranks"


def test_ranks_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other rank has seen three images, in which four queries changed at every layer."""
    other = torch.tensor([[[4.0, 4.0], [3.0, 3.0]]] * 2)
    callback = MatchingInstability()
    validate(callback, [STAYS], monkeypatch)
    found = validate(callback, [SWAPPED], monkeypatch, of=trainer(2, other))
    assert (found["matching/layer0/IS"], found["matching/layer1/IS"]) == (1, 1.5)


def test_a_resumed_run_compares_with_before_it_was_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = MatchingInstability(), MatchingInstability()
    assert first.state_dict() == {}
    second.load_state_dict({})
    validate(first, [STAYS, STAYS], monkeypatch)
    second.load_state_dict(first.state_dict())
    assert validate(second, [SWAPPED, STAYS], monkeypatch) == validate(
        first, [SWAPPED, STAYS], monkeypatch
    )


def test_images_may_differ_in_their_number_of_queries(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A detector selects all tokens of an image that has fewer than it has queries."""
    first, second = MatchingInstability(), MatchingInstability()
    few = Matched(STAYS[:, :2], ANCHORS[:2])
    first._before = {0: Matched(STAYS, ANCHORS), 1: few}
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second._before.keys() == {0, 1}
    assert torch.equal(second._before[1].objects, few.objects)
    assert torch.equal(second._before[1].anchors, few.anchors)


def test_what_has_no_one_to_one_matching_is_refused() -> None:
    module = SimpleNamespace(schemes=nn.ModuleDict())
    with pytest.raises(UserError, match=r"^callbacks\.instability: no scheme"):
        MatchingInstability().setup(trainer(), module, "fit")  # type: ignore[arg-type]
