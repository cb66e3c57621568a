"""The module, its callbacks and checkpoints in Lightning's hands, on a detector of one weight."""

import csv
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector
from lightning.pytorch.trainer.connectors.logger_connector import result
from lightning_utilities.core.rank_zero import WarningCache
from one_weight import Evaluator, NoisyScheme, OneWeight, batch_of
from torch import Tensor, nn
from torch.utils.data import DataLoader

from codetr.checkpoints.files import RunRecord, read_detector_file
from codetr.classes import ClassList
from codetr.errors import UserError
from codetr.loss_terms import Losses, LossTerm
from codetr.structures import (
    Batch,
    Decoded,
)
from codetr.supervision.schemes.protocol import Scheme, require_fit
from codetr.training.callbacks import (
    BestResult,
    GradientNorm,
    LastCheckpoint,
    LearningRates,
    SafePoints,
    Throughput,
)
from codetr.training.csv_logger import CsvLogger
from codetr.training.ema import ExponentialMovingAverage, Warmup, exponential, hyperbolic
from codetr.training.module import DetectionModule, seed_generators
from codetr.training.optim import adamw, can_fuse

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*not resumable.*"),
]

NEEDS_CUDA = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))
LR = 0.1


def loader(batches: int) -> DataLoader:
    return DataLoader(range(2 * batches), batch_size=2, collate_fn=batch_of)


def module(scheme: nn.Module | None = None) -> DetectionModule:
    def optimizer(named: object, batch: int) -> torch.optim.Optimizer:
        parameters = [p for _, p in named]  # type: ignore[attr-defined]
        return torch.optim.SGD([{"params": parameters, "name": "rest"}], lr=LR)

    return DetectionModule(
        OneWeight(),
        {"noisy": scheme or NoisyScheme()},
        optimizer=optimizer,
        schedule=lambda o, steps: torch.optim.lr_scheduler.LambdaLR(o, lambda s: 1 / (1 + s)),
        postprocess=lambda predictions, sizes, infos: tuple(predictions.logits.flatten()),
        evaluator=Evaluator(),
        record=RunRecord(classes=ClassList(names=("a",), category_ids=(1,))),
        effective_batch=2,
        seed=0,
    )


def fit(
    folder: Path,
    model: DetectionModule,
    *callbacks: Callback,
    epochs: int = 2,
    batches: int = 3,
    ckpt_path: Path | None = None,
    every: int = 1,
    accumulate: int = 1,
    clip: float | None = None,
) -> list[dict[str, str]]:
    """Train; returns the rows of metrics.csv."""
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[SafePoints(), *callbacks],
        logger=CsvLogger(folder),
        log_every_n_steps=every,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=clip,
        enable_checkpointing=any(isinstance(c, LastCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    trainer.fit(model, loader(batches), loader(2), ckpt_path=ckpt_path, weights_only=True)
    return rows(folder)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def column(table: list[dict[str, str]], name: str) -> list[float]:
    return [float(row[name]) for row in table if row.get(name)]


def test_logs_raw_terms_and_the_weighted_total(tmp_path: Path) -> None:
    table = fit(tmp_path, module())
    raw = column(table, "loss/noisy/layer0/l1")
    assert len(raw) == 6
    assert column(table, "loss") == pytest.approx([2 * value for value in raw])
    assert len(column(table, "val/AP")) == 2


def test_logs_means_over_the_interval_and_the_rest_of_an_epoch(tmp_path: Path) -> None:
    every_step = column(fit(tmp_path / "a", module(), epochs=1, batches=5), "loss")
    table = fit(tmp_path / "b", module(), epochs=1, batches=5, every=2)
    pairs = [sum(every_step[:2]) / 2, sum(every_step[2:4]) / 2, every_step[4]]
    assert column(table, "loss") == pytest.approx(pairs)
    assert [row["step"] for row in table if row.get("loss")] == ["1", "3", "4"]


def test_accumulation_logs_once_per_optimiser_step(tmp_path: Path) -> None:
    single = column(fit(tmp_path / "a", module(), epochs=1, batches=1), "loss")
    table = fit(tmp_path / "b", module(), LearningRates(), epochs=1, batches=5, accumulate=2)
    assert len(column(table, "loss")) == 3  # two pairs and a rest
    assert column(table, "lr/rest") == pytest.approx([LR / 2, LR / 3, LR / 4])
    assert single[0] > 0


def test_gradient_norm_is_that_before_clipping(tmp_path: Path) -> None:
    table = fit(tmp_path, module(), GradientNorm(), epochs=1, clip=0.01)
    assert column(table, "train/gradient_norm") == pytest.approx([2.0] * 3)  # |d 2|w - x| / dw|


def test_nothing_is_logged_in_training_that_would_be_copied_to_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning makes tensors of the device out of Python's numbers, and waits for them."""
    seen, log = {}, DetectionModule.log

    def spy(self: DetectionModule, name: str, value: object, **options: object) -> None:
        seen[name] = value
        log(self, name, value, **options)

    monkeypatch.setattr(DetectionModule, "log", spy)
    fit(tmp_path, module(), GradientNorm(), LearningRates(), Throughput(), every=2)
    assert {"loss", "lr/rest", "train/gradient_norm", "perf/images_per_second"} <= seen.keys()
    rest = {name for name in seen if not name.startswith("val/")}
    assert all(isinstance(seen[name], Tensor) for name in rest)


def test_resumed_run_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    def parts(folder: Path) -> list[Callback]:
        return [ExponentialMovingAverage(), BestResult(), LastCheckpoint(folder)]

    whole = fit(tmp_path / "whole", module(), *parts(tmp_path / "whole"), epochs=4)
    folder = tmp_path / "cut"
    fit(folder, module(), *parts(folder), epochs=2)
    callbacks = parts(folder)
    resumed = module()
    last = folder / "last.ckpt"
    again = fit(folder, resumed, *callbacks, epochs=4, ckpt_path=last)
    assert again == whole
    best = callbacks[1]
    assert isinstance(best, BestResult)
    assert best.metrics["AP"] == pytest.approx(max(column(whole, "val/AP")))


def test_nothing_is_warned_of_when_losses_are_logged_by_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(result, "_distributed_is_initialized", lambda: not asked.append(1))
    monkeypatch.setattr(result, "warning_cache", WarningCache())
    monkeypatch.setattr(_AcceleratorConnector, "is_distributed", True)
    fit(tmp_path, module(), epochs=1, every=2)  # of three steps: the last is logged at the end
    assert not any("sync_dist" in str(one.message) for one in recwarn)
    monkeypatch.setattr("codetr.training.module.FIRST_RANK_ONLY", {"rank_zero_only": True})
    fit(tmp_path, module(), epochs=1, every=2)
    assert asked
    assert any("sync_dist" in str(one.message) for one in recwarn)  # as Lightning would


def test_seed_changes_the_draws(tmp_path: Path) -> None:
    other = module()
    other.seed = 1
    first = column(fit(tmp_path / "a", module()), "loss")
    assert column(fit(tmp_path / "b", other), "loss") != first


@pytest.mark.parametrize("device", ["cpu", "meta", pytest.param("cuda", marks=NEEDS_CUDA)])
def test_draws_are_those_of_torch_s_seed(device: str) -> None:
    drawn_on = ["cpu", "cuda"] if device == "cuda" else ["cpu"]
    torch.manual_seed(7)
    expected = [torch.rand(3, device=where) for where in drawn_on]
    torch.manual_seed(8)
    seed_generators(7, torch.device(device))
    for where, values in zip(drawn_on, expected, strict=True):
        assert torch.equal(torch.rand(3, device=where), values)


@pytest.mark.parametrize("bad_step", [2, 4, 5])
def test_nan_is_an_error_and_reaches_no_checkpoint(tmp_path: Path, bad_step: int) -> None:
    scheme = NoisyScheme(lambda step: float("nan") if step == bad_step else 0.0)
    keep = LastCheckpoint(tmp_path, every_n_steps=1)
    message = rf"step {bad_step}: loss, loss/noisy/layer0/l1"
    with pytest.raises(UserError, match=message):
        fit(tmp_path, module(scheme), keep, every=3)
    weights = read_detector_file(tmp_path / "last.ckpt").weights
    assert weights["weight"].isfinite()
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert content["global_step"] == bad_step


def test_checkpoint_says_what_it_is(tmp_path: Path) -> None:
    fit(tmp_path, module(), LastCheckpoint(tmp_path), epochs=1)
    content = read_detector_file(tmp_path / "last.ckpt")
    assert content.record.classes == ClassList(names=("a",), category_ids=(1,))
    assert set(content.weights) == {"weight"}


class Spy(Callback):
    """Keeps the weight after every step, and the one that validation sees."""

    def __init__(self) -> None:
        self.trained: list[float] = []
        self.validated: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: DetectionModule, *_: object) -> None:
        self.trained.append(float(pl_module.detector.weight.detach()))

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: DetectionModule, *_: object
    ) -> None:
        self.validated.append(float(pl_module.detector.weight.detach()))


def momentum_of_mmdet(n: int) -> float:
    """ExpMomentumEMAHook with momentum 0.4 and total_iter 4, at its iteration ``n``."""
    return (1 - 0.4) * math.exp(-(1 + n) / 4) + 0.4


@pytest.mark.parametrize(
    ("warmup", "decay"),
    [
        (hyperbolic, lambda n: min(0.6, (1 + n) / (10 + n))),
        (partial(exponential, length=4), lambda n: 1 - momentum_of_mmdet(n)),
        (None, lambda n: 0.6),
    ],
    ids=["hyperbolic", "exponential", "none"],
)
def test_average_follows_its_equation_validates_and_is_saved(
    tmp_path: Path, warmup: Warmup | None, decay: Callable[[int], float]
) -> None:
    spy = Spy()
    ema = ExponentialMovingAverage(decay=0.6, warmup=warmup)
    fit(tmp_path, module(), spy, ema, LastCheckpoint(tmp_path), epochs=1, batches=6)
    average = spy.trained[0]
    for n, weight in enumerate(spy.trained[1:], start=1):
        average += (1 - decay(n)) * (weight - average)
    assert spy.validated == pytest.approx([average] * 2)
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert float(content["state_dict"]["detector.weight"]) == pytest.approx(average)
    current = content["current_model_state"]["detector.weight"]
    assert float(current) == pytest.approx(spy.trained[-1])


def test_run_stopped_in_validation_saves_the_trained_weights(tmp_path: Path) -> None:
    model, spy = module(), Spy()

    def stop(found: object, infos: object) -> None:
        raise KeyboardInterrupt

    model.evaluator.update = stop  # type: ignore[method-assign]
    ema = ExponentialMovingAverage(decay=0.6)
    with pytest.raises(SystemExit):
        fit(tmp_path, model, spy, ema, LastCheckpoint(tmp_path))
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    current = content["current_model_state"]["detector.weight"]
    assert float(current) == pytest.approx(spy.trained[-1])


class Slope(Scheme):
    """A scheme of its own two weights, whose gradient is (3, -4) everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def score(self, decoded: Mapping[str, Decoded], batch: Batch) -> Losses:
        own = (self.weight * torch.tensor([3.0, -4.0])).sum()
        return {"slope": LossTerm(own + 0 * decoded["main"].layers[0].logits.sum(), 1.0)}


class Grouped(Slope):
    """One that would add query groups."""

    adds_groups = True


def test_a_scheme_that_the_detector_cannot_train_with_is_named_at_composition() -> None:
    with pytest.raises(UserError, match=r"scheme=\[noisy\] adds further ones"):
        module(Grouped())
    able = OneWeight()
    able.groups = True
    require_fit(able, {"noisy": Grouped()})


class StepGradients(Callback):
    """The gradients of the scheme's weights that the optimiser stepped with."""

    def on_train_batch_end(self, trainer: Trainer, model: DetectionModule, *_: object) -> None:
        self.seen = model.schemes["noisy"].weight.grad.tolist()


CLIPPED = {None: [0.06, -0.08], "norm": [0.06, -0.08], "value": [0.1, -0.1]}


@pytest.mark.parametrize("algorithm", CLIPPED)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_before_a_fused_step(
    algorithm: str | None, precision: str, tmp_path: Path
) -> None:
    """On the CPU Lightning's mixed precision is the same as on a GPU, and AdamW is fused too."""
    model, gradients = module(Slope()), StepGradients()
    model.build_optimizer = partial(
        adamw, lr=LR, weight_decay=0.0, rules={}, fused=can_fuse(precision)
    )
    trainer = Trainer(
        accelerator="cpu",
        precision=precision,
        max_steps=1,
        callbacks=[gradients],
        gradient_clip_val=0.1,
        gradient_clip_algorithm=algorithm,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(model, loader(1), loader(1))
    assert trainer.optimizers[0].defaults["fused"] is True
    assert gradients.seen == pytest.approx(CLIPPED[algorithm], rel=1e-4)
    assert model.schemes["noisy"].weight.tolist() == pytest.approx([-LR, LR], rel=1e-4)
