"""A run that is interrupted anywhere and resumed equals the uninterrupted one to the bit."""

import csv
import itertools
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf
from one_weight import Evaluator, NoisyScheme, OneWeight, batch_of
from torch import Tensor
from torch.utils.data import DataLoader

from codetr.checkpoints.files import RunRecord
from codetr.classes import ClassList
from codetr.data.sample import SampleKey
from codetr.data.samplers import TrainSampler
from codetr.data.step_loader import StepLoader, remaining_batches
from codetr.run_folder import RunFolder
from codetr.structures import Batch
from codetr.training import stopping
from codetr.training.callbacks import (
    BestResult,
    GradientNorm,
    LastCheckpoint,
    LearningRates,
    SafePoints,
)
from codetr.training.checkpoint_files import resume_path
from codetr.training.csv_logger import CsvLogger
from codetr.training.ema import ExponentialMovingAverage
from codetr.training.module import DetectionModule

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*not resumable.*"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
]

IMAGES = 15
EPOCHS = 3


class Images(LightningDataModule):
    """Image i is a batch's pixels of the value i, so that a step depends on what it is shown."""

    def train_dataloader(self) -> StepLoader:
        groups = torch.arange(IMAGES) % 2
        repeats = 1 + (torch.arange(IMAGES) == 3).long()
        return StepLoader(
            _Keys(),
            step_batches=self.trainer.accumulate_grad_batches,
            window=lambda: remaining_batches(self.trainer),
            batch_size=2,
            sampler=TrainSampler(IMAGES, 2, 0, groups=groups, repeats=repeats),
            collate_fn=_collate,
        )

    def val_dataloader(self) -> DataLoader:
        return DataLoader(range(4), batch_size=2, collate_fn=batch_of)


class _Keys:
    def __getitem__(self, key: SampleKey) -> SampleKey:
        return key

    def __len__(self) -> int:
        return IMAGES


def _collate(keys: Sequence[SampleKey]) -> Batch:
    batch = batch_of([key.image for key in keys])
    values = torch.tensor([1 + key.image + key.copy / 2 for key in keys])
    pixels = batch.images.pixels * values[:, None, None, None] / IMAGES
    return replace(batch, images=replace(batch.images, pixels=pixels))


@dataclass(frozen=True)
class Setting:
    """How the run is trained."""

    accumulate: int = 1
    limit: int | float = 1.0
    log_every: int = 1
    val_check_interval: float = 1.0
    check_val_every_n_epoch: int = 1


class Killed(BaseException):
    """Stands for kill -9: nothing is done any more."""


Hook = tuple[str, int]
"""Name of a callback's hook, and the how manieth call of it."""


class Interrupt(Callback):
    """Does something at a hook."""

    def __init__(self, hook: Hook, action: Callable[[], None]) -> None:
        self.calls = 0
        self.action = action
        name, self.number = hook
        setattr(self, name, self._called)

    def _called(self, *_: Any, **__: Any) -> None:
        self.calls += 1
        if self.calls == self.number:
            self.action()


def kill() -> None:
    raise Killed


def ask(signum: int) -> Callable[[], None]:
    return lambda: signal.raise_signal(signum)


def model(accumulate: int) -> DetectionModule:
    torch.manual_seed(0)

    def optimizer(named: Any, batch: int) -> torch.optim.Optimizer:
        return torch.optim.AdamW([{"params": [p for _, p in named], "name": "rest"}], lr=0.1)

    return DetectionModule(
        OneWeight(),
        {"noisy": NoisyScheme()},
        optimizer=optimizer,
        schedule=lambda o, steps: torch.optim.lr_scheduler.LambdaLR(o, lambda s: 1 / (1 + s)),
        postprocess=lambda predictions, sizes, infos: tuple(predictions.logits.flatten()),
        evaluator=Evaluator(),  # type: ignore[arg-type]
        record=RunRecord(classes=ClassList(names=("a",), category_ids=(1,))),
        effective_batch=2 * accumulate,
        seed=0,
    )


def train(
    folder: Path,
    setting: Setting,
    *more: Callback,
    every: int | None = 1,
    resume: str | None = None,
    apart: float = 0.0,
) -> None:
    callbacks = [
        SafePoints(),
        BestResult(),
        GradientNorm(),
        LearningRates(),
        ExponentialMovingAverage(decay=0.7),
        *more,
        ModelCheckpoint(
            folder,
            filename="best",
            monitor="val/AP",
            mode="max",
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        ),
        LastCheckpoint(folder, every_n_steps=every, seconds_apart=apart),
    ]
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        callbacks=callbacks,
        logger=CsvLogger(folder),
        log_every_n_steps=setting.log_every,
        accumulate_grad_batches=setting.accumulate,
        limit_train_batches=setting.limit,
        val_check_interval=setting.val_check_interval,
        check_val_every_n_epoch=setting.check_val_every_n_epoch,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    path = folder / resume if resume and (folder / resume).is_file() else None
    with stopping.StopSignals():
        trainer.fit(
            model(setting.accumulate), datamodule=Images(), ckpt_path=path, weights_only=True
        )


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run leaves: weights, averages, optimiser, schedule, best result and metrics."""
    found: dict[str, Any] = {}
    for name in ("last.ckpt", "best.ckpt"):
        content = torch.load(folder / name, weights_only=True)
        for part in ("callbacks", "loops"):
            content.pop(part)
        found |= {f"{name}/{key}": value for key, value in _flat(content)}
    with (folder / "metrics.csv").open(newline="") as file:
        found["metrics"] = list(csv.DictReader(file))
    return found


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [x for key, part in value.items() for x in _flat(part, f"{prefix}/{key}")]
    if isinstance(value, list | tuple):
        return [x for i, part in enumerate(value) for x in _flat(part, f"{prefix}/{i}")]
    return [(prefix, value.tolist() if isinstance(value, Tensor) else value)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Setting], dict[str, Any]]:
    """What an uninterrupted run leaves."""
    known: dict[Setting, dict[str, Any]] = {}

    def get(setting: Setting) -> dict[str, Any]:
        if setting not in known:
            folder = tmp_path_factory.mktemp("whole")
            train(folder, setting)
            known[setting] = outcome(folder)
        return known[setting]

    return get


def differences(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = found.keys() | expected.keys()
    return {k: (found.get(k), expected.get(k)) for k in keys if found.get(k) != expected.get(k)}


SETTINGS = [
    Setting(),
    Setting(log_every=3),
    Setting(accumulate=3),
    Setting(accumulate=3, limit=7, log_every=2),
    Setting(val_check_interval=0.5),
    Setting(check_val_every_n_epoch=2, accumulate=2),
]
HOOKS: list[Hook] = [
    ("on_train_epoch_start", 2),
    ("on_train_batch_start", 6),
    ("on_train_batch_end", 3),
    ("on_train_batch_end", 12),
    ("on_before_optimizer_step", 2),
    ("on_validation_start", 1),
    ("on_validation_batch_end", 1),
    ("on_validation_end", 1),
    ("on_train_epoch_end", 1),
    ("on_train_epoch_end", 3),
    ("on_train_end", 1),
]
ACTIONS = {"kill": kill, "sigterm": ask(signal.SIGTERM), "sigint": ask(signal.SIGINT)}
CASES = list(itertools.product(SETTINGS, HOOKS, ACTIONS))
QUICK = 7
"""Of so many cases one is not slow; it divides no number of settings, hooks or actions."""


@pytest.mark.parametrize(
    ("setting", "hook", "action"),
    [
        pytest.param(*case, id="-".join(map(str, case)), marks=[pytest.mark.slow] * bool(i % QUICK))
        for i, case in enumerate(CASES)
    ],
)
def test_resumed_run_equals_the_uninterrupted_one(
    setting: Setting,
    hook: Hook,
    action: str,
    tmp_path: Path,
    whole: Callable[[Setting], dict[str, Any]],
) -> None:
    expected = whole(setting)
    with pytest.raises((Killed, stopping.Stopped)):
        train(tmp_path, setting, Interrupt(hook, ACTIONS[action]))
    train(tmp_path, setting, resume="last.ckpt")
    assert differences(outcome(tmp_path), expected) == {}


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_a_run_that_is_stopped_at_every_step_equals_the_uninterrupted_one(
    setting: Setting, tmp_path: Path, whole: Callable[[Setting], dict[str, Any]]
) -> None:
    expected = whole(setting)
    stops = 0
    while True:
        once_per_step = Interrupt(("on_train_batch_end", 1 + stops % 2), ask(signal.SIGTERM))
        try:
            train(tmp_path, setting, once_per_step, every=None, resume="last.ckpt")
        except stopping.Stopped:
            stops += 1
        else:
            break
    assert stops > EPOCHS
    assert differences(outcome(tmp_path), expected) == {}


def test_the_best_checkpoint_resumes_as_well(
    tmp_path: Path, whole: Callable[[Setting], dict[str, Any]]
) -> None:
    setting = Setting(log_every=3)
    expected = whole(setting)
    with pytest.raises(Killed):
        train(tmp_path, setting, Interrupt(("on_train_batch_end", 12), kill))
    train(tmp_path, setting, resume="best.ckpt")
    assert differences(outcome(tmp_path), expected) == {}


def test_without_checkpoints_within_epochs_a_kill_costs_the_steps_since_the_last(
    tmp_path: Path, whole: Callable[[Setting], dict[str, Any]]
) -> None:
    setting = Setting()
    expected = whole(setting)
    with pytest.raises(Killed):
        train(tmp_path, setting, Interrupt(("on_train_batch_end", 12), kill), every=None)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 8  # an epoch
    train(tmp_path, setting, resume="last.ckpt")
    assert differences(outcome(tmp_path), expected) == {}


HOUR = 3600.0
"""Longer than any run here: nothing is written between epochs."""


@pytest.mark.parametrize("hook", [("on_validation_batch_end", 3), ("on_train_batch_end", 12)])
@pytest.mark.parametrize("action", ACTIONS)
def test_a_rarely_saved_run_resumes_from_its_last_checkpoint(
    hook: Hook, action: str, tmp_path: Path, whole: Callable[[Setting], dict[str, Any]]
) -> None:
    setting = Setting()
    expected = whole(setting)
    cut = Interrupt(hook, ACTIONS[action])
    with pytest.raises((Killed, stopping.Stopped)):
        train(tmp_path, setting, cut, every=None, apart=HOUR)
    asked = action != "kill"
    assert (tmp_path / "last.ckpt").is_file() == asked
    found = resume_path("last", RunFolder(tmp_path))
    assert found is not None
    assert Path(found).name == ("last.ckpt" if asked else "best.ckpt")
    train(tmp_path, setting, resume=Path(found).name, every=None, apart=HOUR)
    assert differences(outcome(tmp_path), expected) == {}


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_a_stop_within_a_validation_loses_no_step(
    setting: Setting, tmp_path: Path, whole: Callable[[Setting], dict[str, Any]]
) -> None:
    """Although nothing was written before it, and the model has its averaged weights."""
    expected = whole(setting)
    stop = Interrupt(("on_validation_batch_end", 1), ask(signal.SIGTERM))
    with pytest.raises(stopping.Stopped) as stopped:
        train(tmp_path, setting, stop, every=None, apart=HOUR)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"]
    assert kept > 0
    assert f"kept at step {kept} in " in stopped.value.line()
    first = next(row for row in expected["metrics"] if row["val/AP"])
    assert kept == int(first["step"]) + 1
    train(tmp_path, setting, resume="last.ckpt", every=None, apart=HOUR)
    assert differences(outcome(tmp_path), expected) == {}


def test_several_processes_save_before_each_validation(
    tmp_path: Path,
) -> None:
    kept = []

    class Keeper(LastCheckpoint):
        def save(self, trainer: Trainer) -> None:
            kept.append(trainer.world_size)

    for size in (1, 2):
        progress = SimpleNamespace(total=SimpleNamespace(ready=3))
        loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
        trainer = SimpleNamespace(
            world_size=size,
            sanity_checking=False,
            fit_loop=loop,
            global_step=3,
            callbacks=[Keeper(tmp_path, seconds_apart=HOUR)],
        )
        SafePoints().on_validation_start(trainer, None)  # type: ignore[arg-type]
    assert kept == [2]


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        ({"every_minutes": 5 / 60}, [6, 12, 18, 24]),  # all know a step later
        ({"every_n_steps": 4}, [4, 8, 12, 16, 20, 24]),
        ({"every_n_steps": 1}, [*range(1, 27)]),
    ],
    ids=str,
)
def test_processes_whose_clocks_differ_write_at_the_same_steps(
    every: dict[str, Any], expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two, of which the second starts later, and comes later to each step, which takes a second."""
    now, late = 0.0, (0.0, 0.7)
    monkeypatch.setattr("codetr.training.callbacks.checkpoints.time.monotonic", lambda: now)
    asked = [[0, 0]]  # the largest of both, by turn
    written: list[list[int]] = [[], []]
    processes = []
    for rank, steps in enumerate(written):
        now = late[rank]
        trainer = SimpleNamespace(
            world_size=2,
            accumulate_grad_batches=1,
            fast_dev_run=False,
            global_step=0,
            callbacks=[LastCheckpoint(tmp_path, seconds_apart=HOUR, **every)],
            save_checkpoint=lambda path, steps=steps: steps.append(turn),
        )
        points = SafePoints()

        def agree(*own: int) -> list[int]:
            asked[turn] = [max(pair) for pair in zip(asked[turn], own, strict=True)]
            return asked[turn - 1]

        monkeypatch.setattr(points, "_agree", agree)
        processes.append((points, trainer))
    for turn in range(1, 27):
        asked.append([0, 0])
        for rank, (points, trainer) in enumerate(processes):
            now, trainer.global_step = turn + late[rank] / 2, turn
            points.on_train_batch_start(trainer, None, None, turn)  # type: ignore[arg-type]
    assert written == [expected, expected]


def test_short_epochs_are_not_all_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between writings lies the time that was asked for, and the end is written always."""
    written: dict[float, list[int]] = {}
    for apart in (0.0, HOUR):
        steps = written.setdefault(apart, [])

        def save(keeper: LastCheckpoint, trainer: Trainer, steps: list[int] = steps) -> None:
            steps.append(trainer.global_step)

        monkeypatch.setattr(LastCheckpoint, "save", save)
        train(tmp_path, Setting(), every=None, apart=apart)
    assert written == {0.0: [8, 8, 16, 16, 24, 24], HOUR: [24]}


def test_the_time_since_the_last_write_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter((100.0, 100.0, 159.9, 160.0, 500.0))
    monkeypatch.setattr("codetr.training.callbacks.checkpoints.time.monotonic", looks.__next__)
    keeper = LastCheckpoint(tmp_path, seconds_apart=60)
    assert [keeper.due_by_time(within_epoch=False) for _ in range(4)] == [False, False, True, True]


def test_a_second_ctrl_c_does_not_wait_for_a_step(tmp_path: Path) -> None:
    impatient = [Interrupt((hook, 2), ask(signal.SIGINT)) for hook in IMPATIENT]
    with pytest.raises(stopping.Stopped) as stopped:
        train(tmp_path, Setting(), *impatient, every=None)
    assert stopped.value.exit_code == 130
    assert not (tmp_path / "last.ckpt").exists()


IMPATIENT = ("on_before_backward", "on_after_backward")


@pytest.mark.parametrize(("every", "told"), [(1, True), (None, False)])
def test_changed_accumulation_is_warned_of_only_within_an_epoch(
    every: int | None, told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Killed):
        train(tmp_path, Setting(), Interrupt(("on_train_batch_end", 12), kill), every=every)
    train(tmp_path, Setting(accumulate=2), resume="last.ckpt")
    assert ("resumed within an epoch" in caplog.text) == told


def test_checkpoints_are_written_by_time_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def tick() -> float:
        nonlocal now
        now += 1  # at every look
        return now

    monkeypatch.setattr("codetr.training.callbacks.checkpoints.time.monotonic", tick)
    keeper = LastCheckpoint(tmp_path, every_minutes=5 / 60)
    assert [keeper.due_by_time(within_epoch=True) for _ in range(1, 8)] == [False] * 4 + [True] * 3
    assert not keeper.due_by_step(6)


def test_a_stop_does_not_wait_for_the_end_of_a_validation(tmp_path: Path) -> None:
    seen = Interrupt(("on_validation_batch_end", 1), ask(signal.SIGTERM))
    with pytest.raises(stopping.Stopped, match="stopped by SIGTERM") as stopped:
        train(tmp_path, Setting(), seen, every=None)
    assert seen.calls == 1  # of two batches
    assert stopped.value.exit_code == 143
    assert "kept at step 8" in stopped.value.line()


def test_the_message_names_the_command_that_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = OmegaConf.create({"name": "2026-01-01"})
    given = ["data.root='a b'", "ckpt_path=last", "name=x"]
    hydra = {
        "job": {"config_name": "train"},
        "runtime": {"config_sources": [{"provider": "command-line", "path": "/own"}]},
        "overrides": {"hydra": ["hydra.verbose=true", "hydra.mode=RUN"]},
    }
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: OmegaConf.create(hydra))
    told = [
        "--config-dir=/own",
        "hydra.verbose=true",
        given[0],
        "name=2026-01-01",
        "ckpt_path=last",
    ]
    for program, words in (
        ("train.py", ["python", "train.py"]),
        ("/usr/codetr-train", ["codetr-train"]),
    ):
        monkeypatch.setattr(sys, "argv", [program, "seed=1"])
        monkeypatch.setattr(sys, "executable", "/usr/bin/python")
        assert shlex.split(stopping.next_command(cfg, given)) == [*words, *told]
    monkeypatch.setattr(HydraConfig, "initialized", lambda: False)
    in_python = "codetr.train(['seed=1', 'name=2026-01-01', 'ckpt_path=last'])"
    assert stopping.next_command(cfg, ["seed=1"]) == in_python
