"""Nothing that is planted in a checkpoint's record runs: at any place, by any way to open it."""

import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from planted import CODE, HOME, PLACE, File, places, planted
from tiny_checkpoint import CLASSES, TINY, save_tiny

import codetr
from codetr.checkpoints.experiment import CONF
from codetr.checkpoints.transfer import load_weights
from codetr.errors import UserError
from codetr.inference import export as export_module
from codetr.inference.command import open_chosen, predict
from codetr.inference.export_check import Case
from codetr.training.evaluate import open_branch
from codetr.training.train import build_detector, open_checkpoint

RESOLVER = "planted"
TEXTS = (
    f"${{{RESOLVER}:}}",
    f"${{oc.create:{{_target_:{HOME}.run}}}}",
    f"a ${{{RESOLVER}:}} b",
    f"\\${{{RESOLVER}:}}",
)
NODES: tuple[dict[str, Any], ...] = (
    {"_target_": f"{HOME}.run"},
    {"_target_": f"{HOME}.run", "_partial_": True},
    {"_target_": "hydra.utils.get_method", "path": f"{HOME}.run"},
    {"_target_": "codetr.data.augment.Chain", "steps": [{"_target_": f"{HOME}.run"}]},
    {
        "_target_": "torch.nn.Identity",
        "_args_": [{"_target_": f"{HOME}.run", "_recursive_": False}],
        "_convert_": "object",
    },
)
BUILT = {"model", "data", "evaluation", "augmentation"}
"""Groups of a record that the entries build from."""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> File:
    """A checkpoint with a whole record of a run with auxiliary heads."""
    folder = tmp_path_factory.mktemp("run")
    overrides = ("data=coco", "data.num_workers=0", f"data.root={folder}")
    return File(save_tiny(folder / "model.safetensors", *overrides))


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that exists once anything planted was imported, called or resolved. Beside it is an
    image to look at.
    """
    path = tmp_path / "canary"
    (tmp_path / f"{HOME}.py").write_text(CODE.format(canary=str(path), imported=str(path)))
    monkeypatch.syspath_prepend(tmp_path)
    Image.new("RGB", (96, 96)).save(tmp_path / "image.png")
    OmegaConf.register_new_resolver(RESOLVER, lambda: path.touch())
    yield path
    OmegaConf.clear_resolver(RESOLVER)
    sys.modules.pop(HOME, None)


@functools.cache
def composed(name: str, path: Path, *overrides: str) -> DictConfig:
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "trace", _stop)
        export_module.export(open_chosen(cfg), cfg.checkpoint, cfg.out, cfg.format, cases=cases)


def _stop(*_: object) -> None:
    raise UserError("traced")


def entry_eval(path: Path) -> None:
    """Up to reading the annotations: there are none."""
    open_branch(composed("eval", path, "trainer=cpu"))


def entry_train(path: Path) -> None:
    """What ``train.py checkpoint=FILE`` does with the file."""
    cfg = composed("train", path, *TINY)
    load_weights(open_checkpoint(cfg.checkpoint, cfg), cfg.checkpoint, build_detector(cfg), CLASSES)


ENTRIES = (entry_load, entry_from_pretrained, entry_predict, entry_export, entry_eval, entry_train)


def opened(entry: Callable[[Path], None], path: Path) -> str | None:
    """What the user is told, in one line; None if the file was opened."""
    said = None
    try:
        entry(path)
    except UserError as error:
        said = str(error)
    assert said is None or "\n" not in said
    return said


def parts(file: File) -> list[tuple[PLACE, Any]]:
    """What of a record could be resolved or built: all but the lists of classes."""
    return [(p, v) for p, v in places(file.record) if p[:1] in (("config",), ("preprocessing",))]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.__name__)
def test_an_interpolation_anywhere_is_refused(
    file: File, tmp_path: Path, canary: Path, entry: Callable[[Path], None]
) -> None:
    seen = 0
    for (place, value), text in zip(parts(file), itertools.cycle(TEXTS), strict=False):
        if isinstance(value, str) or (entry is entry_load and len(place) > 1):
            path = file.write(tmp_path / "model.safetensors", planted(file.record, place, text))
            assert "is never resolved" in str(opened(entry, path)), place
            assert not canary.exists(), place
            seen += 1
    assert seen > 100


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.__name__)
def test_a_foreign_class_anywhere_is_refused_or_ignored(
    file: File, tmp_path: Path, canary: Path, entry: Callable[[Path], None]
) -> None:
    """Each alone where objects are built, and all together where none are."""
    refused, ignored = 0, file.record
    for (place, value), node in zip(parts(file), itertools.cycle(NODES), strict=False):
        if not isinstance(value, dict) or "_target_" not in value:
            continue
        if place[0] == "config" and place[1] not in BUILT:
            ignored = planted(ignored, place[:3], node)
            continue
        path = file.write(tmp_path / "model.safetensors", planted(file.record, place, node))
        said = opened(entry, path)
        refused += "asks to build" in str(said)
        assert not canary.exists(), place
    opened(entry, file.write(tmp_path / "model.safetensors", ignored))
    assert not canary.exists()
    assert refused >= (0 if entry is entry_train else 5)
    assert ignored is not file.record


def test_what_is_planted_would_run(file: File, tmp_path: Path, canary: Path) -> None:
    """Where the user trusts the file, classes of its choice do."""
    place = ("config", "evaluation", "postprocess")
    path = file.write(tmp_path / "model.safetensors", planted(file.record, place, NODES[0]))
    with pytest.raises(UserError, match="no Postprocess"):
        codetr.load(path, device="cpu", trust=True)
    assert canary.exists()
    canary.unlink()
    OmegaConf.to_container(OmegaConf.create([TEXTS[0]]), resolve=True)
    assert canary.exists()


def test_names_of_classes_are_texts(file: File, tmp_path: Path, canary: Path) -> None:
    """Whatever they are: nobody resolves them."""
    names = [TEXTS[0], TEXTS[1], "[bold]${data.root}"]
    path = file.write(tmp_path / "model.safetensors", {**file.record, "class_names": names})
    assert codetr.load(path, device="cpu").record.classes.names == tuple(names)
    assert not canary.exists()


@pytest.mark.parametrize("step", [pytest.param(5, marks=pytest.mark.slow), 59])
def test_a_malformed_record_is_one_line(file: File, tmp_path: Path, step: int) -> None:
    """Whatever stands anywhere; every ``step``-th place."""
    wrong: tuple[Any, ...] = (None, -1, "text", [], {}, True, [[1]], 1e400, {"_target_": "torch"})
    chosen = list(itertools.product(places(file.record), wrong))[::step]
    for (place, _), value in chosen:
        path = file.write(tmp_path / "model.safetensors", planted(file.record, place, value))
        opened(entry_load, path)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "[" * 99 + "]" * 99, "9" * 9999]
)
def test_a_record_that_is_no_record_is_one_line(file: File, tmp_path: Path, text: str) -> None:
    assert opened(entry_load, file.write(tmp_path / "model.safetensors", text)) is not None
