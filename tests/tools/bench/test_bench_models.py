import math
import pickle
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from tiny_bench import EXPERIMENT, PAIR, TINY, TINY_CO_DINO

from codetr.errors import UserError
from codetr.tensor_struct import TensorStruct
from tools.bench import compared_models, ours, workload
from tools.bench import contestant as contestant_module
from tools.bench.baselines import NO_TRANSFORMERS
from tools.bench.compare import ORDER, parts_table, time_steps
from tools.bench.compared_models import PairOptions, choose_models, comparison
from tools.bench.contestant import (
    ASSIGNMENT,
    REST,
    Contestant,
    Silent,
    training_step,
)
from tools.bench.part_times import PartTimer

CPU = torch.device("cpu")


def options(**changes: object) -> PairOptions:
    given = {"height": 64, "width": 96, "repeats": 1, "overrides": TINY, "memory": False}
    return PairOptions(**(given | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def co_dino() -> ours.Ours:
    return ours.from_experiment(EXPERIMENT, options(overrides=TINY_CO_DINO, batch=2))


def seeded_loss(contestant: Contestant) -> torch.Tensor:
    torch.manual_seed(3)
    return contestant.loss().detach()


def test_the_batch_is_as_asked_for() -> None:
    batch = workload.make_batch(options(batch=3))
    assert batch.images.pixels.shape == (3, 3, 64, 96)
    assert not batch.images.padding.any()
    assert [len(targets) for targets in batch.targets] == [workload.BOXES] * 3
    for targets in batch.targets:
        assert targets.boxes.min() >= 0
        assert targets.boxes.max() <= 1
    assert not torch.equal(batch.images.pixels[0], batch.images.pixels[1])


@pytest.mark.parametrize("wrong", [{"height": 8}, {"batch": 0}])
def test_a_batch_of_nothing_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match="give at least 32 pixels per side and 1 image"):
        workload.make_batch(options(**wrong))


def test_sizes_follow_the_device() -> None:
    assert workload.ModelOptions().size == (512, 640)
    assert workload.ModelOptions(device="cuda").size == (800, 1333)
    assert workload.ModelOptions(device="cuda", height=64).size == (64, 1333)


def test_a_step_learns_and_leaves_no_gradients(co_dino: ours.Ours) -> None:
    # timm starts the last norm of every block of a backbone at zero: little passes
    learned = [n for n, _ in co_dino.modules.named_parameters() if "backbone" not in n]
    before = {name: co_dino.modules.get_parameter(name).clone() for name in learned}
    for _ in range(2):  # box layers end with zeros: in the first step nothing passes
        training_step(co_dino, Silent())
    after = dict(co_dino.modules.named_parameters())
    assert all(parameter.grad is None for parameter in after.values())
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert len(changed) > 0.9 * len(before)


def test_watching_changes_nothing_and_finds_every_part() -> None:
    made = ours.from_experiment(EXPERIMENT, options(overrides=TINY_CO_DINO))
    expected = seeded_loss(made)
    timer = PartTimer(CPU)
    made.watch(timer)
    timer.start(REST)
    assert torch.equal(seeded_loss(made), expected)
    timer.stop()
    parts = timer.read()
    assert parts.keys() == set(ORDER[: ORDER.index(REST) + 1])
    assert all(seconds > 0 for seconds in parts.values())


def test_the_parts_of_a_step_make_up_its_time(co_dino: ours.Ours) -> None:
    times, parts = time_steps([co_dino], 1, CPU)
    (seconds,), own = times[EXPERIMENT], parts[EXPERIMENT]
    assert own.keys() == set(ORDER)
    assert sum(own.values()) == pytest.approx(seconds, rel=0.1)
    table = parts_table("parts", {"a": own, "b": {ASSIGNMENT: 1.0}})
    assert list(table.rows) == list(ORDER)
    assert table.rows["backbone"] == (own["backbone"], "")
    assert table.rows[ASSIGNMENT][1] == 1.0


def test_bfloat16_is_asked_of_the_model_and_not_of_its_losses() -> None:
    made = ours.from_experiment(PAIR, options(precision="bf16"))
    seen = []
    made.detector.encoder.layers[0].feed_forward.register_forward_hook(  # type: ignore[union-attr]
        lambda module, inputs, output: seen.append(module.contract(module.expand(inputs[0])).dtype)
    )
    assert seeded_loss(made).dtype == torch.float32
    assert seen == [torch.bfloat16]


def test_detections_are_in_the_pixels_of_the_image(co_dino: ours.Ours) -> None:
    first, second = co_dino.detect()
    assert isinstance(first, TensorStruct)
    assert first.boxes_xyxy_px.max() <= 96  # type: ignore[attr-defined]
    assert len(first.scores) == len(second.scores) > 0  # type: ignore[attr-defined]


def test_an_unknown_experiment_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^nonsense: no experiment of that name: give one of .*$"):
        ours.from_experiment("nonsense", options())


def test_without_transformers_ours_alone_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compared_models, "has_transformers", lambda: False)
    models = choose_models(options())
    assert list(models.builds) == [EXPERIMENT, PAIR]
    assert models.pair is None
    assert models.notes == (NO_TRANSFORMERS,)
    table = comparison("t", "step", {EXPERIMENT: [1.0], PAIR: [2.0]}, {}, models, 4, ("first",))
    assert table.rows == {EXPERIMENT: (1.0, 4.0, ""), PAIR: (2.0, 2.0, "")}
    assert table.notes == ("first", NO_TRANSFORMERS)


class Broken:
    """A baseline that fails where it says."""

    def __init__(self, where: str, models: compared_models.ComparedModels) -> None:
        self.where, self.models = where, models
        assert where != "built", "for want of a wheel"

    def loss(self) -> torch.Tensor:
        assert self.where != "run", "out of memory"
        return torch.zeros((), requires_grad=True)


@pytest.mark.parametrize("where", ["built", "run", "never"])
def test_a_baseline_that_fails_costs_no_row_of_ours(where: str) -> None:
    mine = partial(Broken, "never", None)
    models = compared_models.ComparedModels(
        builds={"ours": mine, "pair": mine, "theirs": partial(Broken, where, None)},
        pair=("pair", "theirs"),
        notes=("said",),
    )
    made, left = compared_models.ready(models, lambda contestant: contestant.loss())
    found, notes = compared_models.peaks(left, lambda build: int(build().loss()) + 7)
    if where == "never":
        assert (len(made), left, len(found), notes) == (3, models, 3, ())
        return
    assert list(left.builds) == list(found) == ["ours", "pair"]
    assert len(made) == 2
    assert left.pair is None
    assert left.notes[0] == "said"
    assert left.notes[1].startswith("theirs failed: AssertionError: ")
    if where == "built":
        with pytest.raises(AssertionError):  # where it is not the baseline
            compared_models.ready(replace(models, pair=None), lambda contestant: contestant.loss())


def test_memory_that_a_baseline_does_not_get_is_noted() -> None:
    models = compared_models.ComparedModels(
        builds={"pair": partial(Broken, "never", None), "theirs": partial(Broken, "run", None)},
        pair=("pair", "theirs"),
        notes=(),
    )
    found, notes = compared_models.peaks(models, lambda build: int(build().loss()) + 2**30)
    assert found == {"pair": 2**30}
    assert notes[0].startswith("the memory of theirs failed: AssertionError: out of memory")
    table = comparison("t", "step", {"pair": [1.0], "theirs": [2.0]}, found, models, 1, notes)
    assert table.rows["pair"][2] == 1.0
    assert table.rows["theirs"][2] == table.rows["ours / transformers"][2] == ""


def test_ours_is_accelerated_as_training_is() -> None:
    made = ours.from_experiment(
        PAIR, options(overrides=(*TINY, "trainer.channels_last=true", "trainer.compile=[encoder]"))
    )
    seen = []
    made.detector.backbone.register_forward_hook(  # type: ignore[union-attr]
        lambda module, inputs, output: seen.append(inputs[0])
    )
    compiled = [layer._compiled_call_impl for layer in made.detector.encoder.layers]  # type: ignore[union-attr]
    assert None not in compiled
    for layer in made.detector.encoder.layers:  # type: ignore[union-attr]
        layer._compiled_call_impl = None  # compiling takes half a minute
    made.detect()
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_tables_name_the_precision() -> None:
    assert options().words == "1 image of 64 x 96, float32 on the CPU"
    assert "TF32 on CUDA" in options(device="cuda").words
    assert "bf16 autocast" in options(device="cuda", precision="bf16").words


def test_without_baseline_there_is_one_model() -> None:
    assert list(choose_models(options(baseline=False)).builds) == [EXPERIMENT]


def test_the_ratio_is_of_the_pair_within_a_turn() -> None:
    pytest.importorskip("transformers")
    models = choose_models(options())
    _, theirs = models.pair or ("", "")
    times = {EXPERIMENT: [9.0, 9.0, 9.0], PAIR: [1.0, 2.0, 30.0], theirs: [2.0, 4.0, 10.0]}
    peaks = {EXPERIMENT: 2**30, PAIR: 2**30, theirs: 2**31}
    table = comparison("t", "step", times, peaks, models, 1, ())
    assert table.rows["ours / transformers"] == (0.5, 2.0, 0.5)
    assert table.rows[EXPERIMENT][2] == 1.0


def test_the_baseline_is_the_same_model_and_trains() -> None:
    pytest.importorskip("transformers")
    from tools.bench import hugging_face

    theirs = hugging_face.from_experiment(PAIR, options(batch=2))
    mine = ours.from_experiment(PAIR, options(batch=2))

    def learned(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters() if p.requires_grad)

    assert learned(theirs.model.model.encoder) == learned(mine.detector.encoder) - 4 * 64  # levels
    assert learned(theirs.model.model.backbone) == learned(mine.detector.backbone)
    assert learned(theirs.modules) == learned(mine.detector)
    assert math.isfinite(float(seeded_loss(theirs)))
    before = [p.clone() for p in theirs.model.model.encoder.parameters()]
    timer = PartTimer(CPU)
    theirs.watch(timer)
    training_step(theirs, timer)
    after = theirs.model.model.encoder.parameters()
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    named = {"backbone", "neck", "encoder", "decoder", "class and box layers"}
    assert timer.read().keys() == {*named, *ORDER[ORDER.index(REST) :]}
    found = theirs.detect()
    assert len(found) == 2
    assert found[0]["boxes"].shape == (100, 4)


def test_memory_is_measured_of_a_model_built_in_the_fresh_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built = []

    def travel(prepare: Any, build: Any, device: torch.device) -> int:
        """As to another process and there."""
        ready = pickle.loads(pickle.dumps((prepare, build)))
        monkeypatch.setattr(ours, "Ours", lambda *args: built.append(1) or ours_class(*args))
        run = ready[0](ready[1])
        assert not built, "weights count too: they come with the run"
        run()
        return 7

    ours_class = ours.Ours
    monkeypatch.setattr(contestant_module, "peak_memory", travel)
    build = partial(ours.from_experiment, PAIR, options())
    assert contestant_module.training_memory(build, CPU) == 7
    assert built == [1]
    built.clear()
    assert contestant_module.detection_memory(build, CPU) == 7
    assert built == [1]
