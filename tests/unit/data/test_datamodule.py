import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra.utils
import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from omegaconf import OmegaConf
from torch import Tensor, nn

from codetr.conf_folder import conf_folder
from codetr.data.augment import Chain, DetrAugmentation, LsjEval, resize
from codetr.data.datamodule import CocoDataModule
from codetr.data.sample import Sample, SampleKey
from codetr.data.sources import CocoFolder
from codetr.errors import UserError
from codetr.structures import Batch, BoxCounts

CONF = conf_folder()
FOLDER = CocoFolder(
    train_annotations="train.json",
    train_images="train",
    val_annotations="val.json",
    val_images="val",
)
RECIPE = DetrAugmentation([24, 28, 32], 48, [30, 40], 80, (20, 32))
MakeRoot = Callable[..., Path]


def _module(root: Path, **options: Any) -> CocoDataModule:
    given = {"num_workers": 0, **options}
    return CocoDataModule(root, FOLDER, RECIPE, Chain(), **given)


def _epoch(module: CocoDataModule, epoch: int) -> list[Batch]:
    loader = module.train_dataloader()
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return list(loader)


def _same(a: list[Batch], b: list[Batch]) -> bool:
    return all(
        x.images.pixels.equal(y.images.pixels) and x.infos == y.infos
        for x, y in zip(a, b, strict=True)
    )


def test_batches_cover_both_splits(make_root: MakeRoot) -> None:
    module = _module(make_root(), group_by_aspect=True)
    module.prepare_data()
    module.setup("fit")
    module.setup("fit")
    assert module.classes.names == ("ant", "bat", "cup")
    train = list(module.train_dataloader())
    assert sorted(i.image_id for b in train for i in b.infos) == [5, 15, 25, 35, 45, 55]
    val = list(module.val_dataloader())
    assert [[i.image_id for i in b.infos] for b in val] == [[5, 25], [15, 35], [45]]
    assert val[0].images.sizes.tolist() == [[30, 40], [30, 40]]
    assert not any(b.images.padding.any() for b in val)
    assert module.val_annotations == module.root / "val.json"


class Halved:
    """An augmentation that does not say how large images become."""

    def __call__(self, sample: Sample) -> Sample:
        return resize(sample, (sample.size[0] // 2, sample.size[1] // 2))


PADDED_SAID = "AP depends on data.eval_batch_size and on the number of devices"
UNKNOWN_SAID = "the output size of augmentation.eval is unknown"


@pytest.mark.parametrize(
    ("options", "images", "said"),
    [
        ({}, [3, 2], ""),
        ({"size_divisor": 48}, [4, 1], ""),
        ({"eval_batches": "padded"}, [4, 1], PADDED_SAID),
        ({"eval_batches": "padded", "size_divisor": 48}, [4, 1], ""),
        ({"eval_batches": "padded", "eval_batch_size": 1}, [1] * 5, ""),
        ({"eval_augmentation": LsjEval(40)}, [4, 1], ""),
        ({"eval_augmentation": Halved()}, [1] * 5, UNKNOWN_SAID),
        ({"eval_augmentation": Chain((LsjEval(40), Halved()))}, [1] * 5, UNKNOWN_SAID),
        ({"eval_augmentation": Halved(), "eval_batch_size": 1}, [1] * 5, ""),
        ({"eval_augmentation": Halved(), "eval_batches": "padded"}, [4, 1], PADDED_SAID),
    ],
)
def test_evaluation_depends_on_the_batch_only_where_that_is_said(
    make_root: MakeRoot,
    caplog: pytest.LogCaptureFixture,
    options: dict[str, Any],
    images: list[int],
    said: str,
) -> None:
    given = {"eval_augmentation": Chain(), "eval_batch_size": 4, "num_workers": 0, **options}
    module = CocoDataModule(make_root(), FOLDER, RECIPE, **given)
    module.setup("validate")
    assert [len(batch.infos) for batch in module.val_dataloader()] == images
    assert (said in caplog.text) if said else (caplog.text == "")


def test_every_device_needs_an_image(make_root: MakeRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    module = _module(make_root())
    module.setup("validate")
    monkeypatch.setattr(module, "_rank", lambda: (0, 6))
    with pytest.raises(UserError, match=r"has 5 images for 6 devices.*trainer\.devices=5"):
        module.val_dataloader()
    monkeypatch.setattr(module, "_rank", lambda: (4, 5))
    assert len(list(module.val_dataloader())) == 1


def test_report_is_printed_once(make_root: MakeRoot, capsys: pytest.CaptureFixture[str]) -> None:
    module = _module(make_root())
    module.setup("fit")
    assert "boxes without area" in " ".join(capsys.readouterr().out.split())
    module.setup("fit")
    assert capsys.readouterr().out == ""


def test_evaluation_needs_its_own_split_alone(make_root: MakeRoot) -> None:
    root = make_root()
    (root / "train.json").unlink()
    module = _module(root)
    module.setup("test")
    assert len(list(module.test_dataloader())) == 3
    assert len(module.classes) == 3
    on_train = _module(make_root(), eval_split="train")
    on_train.setup("validate")
    assert len(on_train.eval_dataset) == 6
    assert on_train.val_annotations.name == "train.json"


def test_randomness_depends_on_seed_and_epoch_alone(make_root: MakeRoot) -> None:
    root = make_root()
    module = _module(root)
    module.setup("fit")
    first = _epoch(module, 1)
    resumed = _module(root)  # as after a restart in epoch 1
    resumed.setup("fit")
    torch.rand(17)
    assert _same(_epoch(resumed, 1), first)
    assert not _same(_epoch(resumed, 2), first)
    other_seed = _module(root, seed=1)
    other_seed.setup("fit")
    assert not _same(_epoch(other_seed, 1), first)


def test_workers_change_nothing(make_root: MakeRoot) -> None:
    root = make_root()
    batches = []
    for workers in (0, 2):
        module = _module(root, num_workers=workers)
        module.setup("fit")
        loader = module.train_dataloader()
        epochs = []
        for epoch in (0, 1):  # the same persistent workers serve both epochs
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            epochs.extend(list(loader))
        batches.append(epochs)
    assert _same(*batches)


def test_epochs_differ_in_augmentation_not_only_in_order(make_root: MakeRoot) -> None:
    module = _module(make_root())
    module.setup("fit")
    samples = [module.train_dataset[SampleKey(0, epoch)] for epoch in range(8)]
    assert len({s.size for s in samples}) > 2
    assert module.train_dataset[SampleKey(0, 3)].image.equal(samples[3].image)
    assert module.train_dataset[0].image.equal(samples[0].image)


def test_the_training_generator_is_left_alone(make_root: MakeRoot) -> None:
    module = _module(make_root())
    module.setup("fit")
    before = torch.get_rng_state()
    _epoch(module, 0)
    list(module.val_dataloader())
    assert torch.get_rng_state().equal(before)


def test_cache_gives_the_same_samples(make_root: MakeRoot) -> None:
    root = make_root()
    plain, cached = _module(root), _module(root, cache=True)
    for module in (plain, cached):
        module.setup("fit")
    _epoch(cached, 0)
    expected = _epoch(plain, 1)
    for path in (root / "train").iterdir():
        path.unlink()
    assert _same(_epoch(cached, 1), expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_is_one_line(make_root: MakeRoot, workers: int) -> None:
    root = make_root()
    (root / "val" / "1.png").write_text("no image")
    module = _module(root, num_workers=workers)
    module.setup("validate")
    with pytest.raises(UserError, match=r"^cannot decode image .*1\.png") as error:
        list(module.val_dataloader())
    assert "\n" not in str(error.value)


def test_wrong_size_is_an_error(content: Any, make_root: MakeRoot) -> None:
    from PIL import Image

    root = make_root(content)
    Image.new("RGB", (30, 30)).save(root / "train" / "0.png")
    message = r"0\.png: 30x30 pixels upright, 40x30 declared; .*data\.boxes"
    with pytest.raises(UserError, match=message):
        _module(root).setup("fit")
    make_root(content)
    module = _module(root)
    module.setup("fit")
    Image.new("RGB", (30, 30)).save(root / "train" / "0.png")
    with pytest.raises(UserError, match=r"0\.png is 30x30 .*says 40x30"):
        list(module.train_dataloader())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_split": "test"}, "eval_split=test"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_arguments(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _module(tmp_path, **options)


class _Recorder(LightningModule):
    """Remembers which images it saw, per epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, list[int], float]] = []
        self.evaluated = 0
        self.steps: list[tuple[BoxCounts, ...]] = []

    def training_step(self, batch: Batch) -> Tensor:
        ids = [info.image_id for info in batch.infos]
        self.seen.append((self.current_epoch, ids, batch.images.pixels.sum().item()))
        assert batch.counts in batch.step
        self.steps.append(batch.step)
        return self.weight * 0

    def validation_step(self, batch: Batch) -> None:
        self.evaluated += len(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def fit(make_root: MakeRoot, tmp_path: Path) -> Callable[..., tuple[list[Any], Path]]:
    root = make_root()

    def fit(epochs: int, checkpoint: Path | None = None) -> tuple[list[Any], Path]:
        torch.rand(epochs)
        recorder = _Recorder()
        trainer = Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            num_sanity_val_steps=0,
            default_root_dir=tmp_path,
        )
        trainer.fit(recorder, datamodule=_module(root), ckpt_path=checkpoint)
        assert recorder.evaluated == 5 * (epochs if checkpoint is None else epochs - 1)
        saved = tmp_path / f"{epochs}.ckpt"
        trainer.save_checkpoint(saved)
        return recorder.seen, saved

    return fit


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*number of training batches")
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning's, with torch 2.15
def test_lightning_sets_the_epoch_and_resuming_sees_the_same(fit: Any) -> None:
    whole, _ = fit(3)
    assert len({str(ids) for _, ids, _ in whole}) > 3  # other batches in other epochs
    _, saved = fit(1)
    resumed, _ = fit(3, saved)
    assert resumed == [step for step in whole if step[0] >= 1]


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*number of training batches")
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning's, with torch 2.15
def test_accumulated_batches_know_each_other(make_root: MakeRoot, tmp_path: Path) -> None:
    recorder, off = _Recorder(), ("logger", "enable_progress_bar", "enable_model_summary")
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        accumulate_grad_batches=2,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        **dict.fromkeys(off, False),
    )
    trainer.fit(recorder, datamodule=_module(make_root(), batch_size=1))
    assert len(recorder.steps) > 2
    assert [len(step) for step in recorder.steps[:2]] == [2, 2]
    assert recorder.steps[0] == recorder.steps[1]
    assert trainer.global_step == -(-len(recorder.steps) // 2)


@pytest.mark.parametrize("augmentation", ["small", "flip", "none"])
def test_configuration_of_the_built_in_data(tmp_path: Path, augmentation: str) -> None:
    config = _config("synthetic", augmentation, tmp_path)
    config.data.source.update(num_train=4, num_val=3)
    module = hydra.utils.instantiate(config.data)
    module.prepare_data()
    module.setup("fit")
    assert len(module.classes) == 6
    batch = next(iter(module.train_dataloader()))
    assert batch.images.pixels.shape[0] == 8
    assert sum(len(t) for t in batch.targets) > 0


def test_configuration_of_coco(shared: Path, tmp_path: Path) -> None:
    config = _config("coco", "detr", tmp_path)
    config.data.root = str(shared / "data/coco_tiny")
    config.data.num_workers = 0
    module = hydra.utils.instantiate(config.data)
    module.setup("fit")
    assert len(module.classes) == 80
    assert len(next(iter(module.train_dataloader()))) == 2
    assert len(next(iter(module.val_dataloader()))) == 2


def _config(data: str, augmentation: str, root: Path) -> Any:
    return OmegaConf.create(
        {
            "seed": 0,
            "paths": {"data": str(root)},
            "model": {"backbone": {"mean": [123.675, 116.28, 103.53], "std": [58.4, 57.1, 57.4]}},
            "data": OmegaConf.load(CONF / "data" / f"{data}.yaml"),
            "augmentation": OmegaConf.load(CONF / "augmentation" / f"{augmentation}.yaml"),
        }
    )


def test_any_generator_follows_the_sample_and_not_the_process(make_root: MakeRoot) -> None:
    """Augmentations of other libraries draw from Python's and NumPy's generators."""

    def noisy(sample: Sample) -> Sample:
        shift = (random.random(), float(np.random.rand()), float(torch.rand(())))
        return replace(sample, scale=shift[:2], image=sample.image.float() + shift[2])

    root = make_root()

    def drawn(before: int) -> list[tuple[float, float]]:
        module = CocoDataModule(root, FOLDER, noisy, Chain(), num_workers=0)
        module.setup("fit")
        for _ in range(before):
            random.random()
            np.random.rand()
        expected = random.getstate(), np.random.get_state()[2]
        scales = [module.train_dataset[key].scale for key in (SampleKey(0, 3), SampleKey(1, 3))]
        assert (random.getstate(), np.random.get_state()[2]) == expected
        return scales

    assert drawn(0) == drawn(7)
    assert len(set(drawn(0))) == 2
