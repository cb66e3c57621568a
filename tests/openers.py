"""Every way to open a foreign file: what each command does with it, in this process."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from planted import CODE, HOME, RESOLVER
from tiny_checkpoint import CLASSES, TINY
from tiny_official import convert_file

import codetr
from codetr.analysis.branch_predictors import branch_predictors
from codetr.analysis.subject import open_subject
from codetr.checkpoints.experiment import CONF
from codetr.checkpoints.transfer import load_weights
from codetr.errors import UserError
from codetr.inference import export as export_module
from codetr.inference.command import open_chosen, predict
from codetr.inference.export_check import Case
from codetr.inference.finder import choose_device
from codetr.inference.info import build
from codetr.training.evaluate import build_test_trainer, open_branch
from codetr.training.train import build_detector, open_checkpoint

Opener = Callable[[Path], None]


@contextmanager
def watched(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file in ``folder`` that exists once anything planted was imported, called or resolved.
    Beside it is an image to look at.
    """
    path = folder / "canary"
    (folder / f"{HOME}.py").write_text(CODE.format(canary=str(path), imported=str(path)))
    patch.syspath_prepend(folder)
    Image.new("RGB", (96, 96)).save(folder / "image.png")
    OmegaConf.register_new_resolver(RESOLVER, lambda: path.touch())
    try:
        yield path
    finally:
        OmegaConf.clear_resolver(RESOLVER)
        sys.modules.pop(HOME, None)


def write_split(folder: Path) -> None:
    """A COCO folder of the classes of ``tiny_checkpoint``, with one image."""
    boxes = [
        {"id": i, "image_id": 1, "category_id": c, "bbox": [i, i, 40, 40], "area": 1600}
        for i, c in enumerate(CLASSES.category_ids, 1)
    ]
    named = zip(CLASSES.category_ids, CLASSES.names, strict=True)
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}],
        "annotations": [{**box, "iscrowd": 0} for box in boxes],
        "categories": [{"id": i, "name": name} for i, name in named],
    }
    (folder / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (folder / split).mkdir()
        Image.new("RGB", (64, 64)).save(folder / split / "a.png")
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


@functools.cache
def composed(name: str, path: Path, *overrides: str) -> DictConfig:
    """The configuration of a command that is given the checkpoint."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, [f"checkpoint={path}", f"paths.run_dir={path.parent}", *overrides])


def entry_load(path: Path) -> None:
    codetr.load(path, device="cpu")


def entry_from_pretrained(path: Path) -> None:
    codetr.Predictor.from_pretrained(path.parent, device="cpu")


def entry_predict(path: Path) -> None:
    predict(composed("predict", path, f"source={path.parent / 'image.png'}", "device=cpu"))


def entry_export(path: Path) -> None:
    """Up to the tracing of the model, which the record has no part in."""
    cfg = composed("export", path, f"out={path.parent / 'model.pt2'}", "format=pt2")
    cases = [Case(images=1, height=64, width=64)]
    with pytest.MonkeyPatch.context() as patch, suppress(_Traced):
        patch.setattr(export_module, "trace", _stop)
        export_module.export(open_chosen(cfg), cfg.checkpoint, cfg.out, cfg.format, cases=cases)


class _Traced(Exception):
    """Raised in place of tracing."""


def _stop(*_: object) -> None:
    raise _Traced


def entry_eval(path: Path) -> None:
    """Up to the run over the split."""
    full, branch, _, _ = open_branch(composed("eval", path, "trainer=cpu"))
    build_test_trainer(full, branch)


def entry_train(path: Path) -> None:
    """What ``train.py checkpoint=FILE`` does with the file."""
    cfg = composed("train", path, *TINY)
    load_weights(open_checkpoint(cfg.checkpoint, cfg), cfg.checkpoint, build_detector(cfg), CLASSES)


def entry_teacher_boxes(path: Path) -> None:
    """As ``entry_eval``, of the other split."""
    full, branch, _, _ = open_branch(composed("teacher_boxes", path, "trainer=cpu"))
    build_test_trainer(full, branch)


def entry_analyse(path: Path) -> None:
    """Up to the looks at images; the schemes are built too."""
    open_subject(composed("analyse", path), "a", choose_device("cpu"))


def entry_demo(path: Path) -> None:
    """Up to the page."""
    branch_predictors(open_chosen(composed("demo", path)), str(path), device="cpu")


def entry_info(path: Path) -> None:
    """Up to the measurement."""
    build(composed("info", path))


def entry_convert(path: Path) -> None:
    """As an official file."""
    convert_file(path, "co_deformable_detr_one_stage_r50_1x_coco")


def entry_official(path: Path) -> None:
    """As an official file that is used as it is."""
    predict(
        composed(
            "predict",
            Path(f"official:{path}"),
            "experiment=co_deformable_detr_one_stage_r50_1x_coco",
            f"source={path.parent / 'image.png'}",
            "device=cpu",
        )
    )


CHECKPOINT: Mapping[str, Opener] = {
    "codetr-train checkpoint=": entry_train,
    "codetr-eval": entry_eval,
    "codetr-predict": entry_predict,
    "codetr-export": entry_export,
    "codetr-info": entry_info,
    "codetr-analyse": entry_analyse,
    "codetr-demo": entry_demo,
    "codetr-teacher-boxes": entry_teacher_boxes,
    "codetr.load": entry_load,
    "codetr.Predictor.from_pretrained": entry_from_pretrained,
}
"""What opens a checkpoint of ours, by the command or function."""
OFFICIAL: Mapping[str, Opener] = {
    "codetr-convert": entry_convert,
    "codetr-predict official:": entry_official,
}
"""What opens an official one."""


def opened(entry: Callable[[Any], None], path: Any) -> str | None:
    """What the user is told, in one line; None if the file was opened."""
    said = None
    try:
        entry(path)
    except UserError as error:
        said = str(error)
    assert said is None or "\n" not in said
    return said
