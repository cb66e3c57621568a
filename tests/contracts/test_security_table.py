"""Nothing that is planted in a foreign file runs, whichever command opens it: entries of files x
commands, counted.
"""

from __future__ import annotations

import importlib
import itertools
import json
import pickle
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from openers import CHECKPOINT, OFFICIAL, Opener, opened, watched, write_split
from planted import HOME, NODES, PLACE, TEXTS, File, planted
from tiny_checkpoint import save_tiny

from codetr.checkpoints.convert import open_checkpoint
from codetr.checkpoints.experiment import CONF
from codetr.checkpoints.zoo import read_table
from codetr.data.annotations import load_annotations
from codetr.data.custom import CustomFolder
from codetr.data.teachers import read_results
from codetr.models.backbones.weights import read_weights
from codetr.run_folder import RunFolder
from codetr.training.checkpoint_files import resume_path
from codetr.training.sweeps.jobs import earlier, plan, require_own_folders
from tools.docs.looks import read_looks
from tools.docs.looks import read_results as read_analyses
from tools.docs.records import read_record
from tools.sweeps.report import facts, summary
from tools.sweeps.report import table as table_of
from tools.sweeps.runs import read_runs
from tools.sweeps.variants import group_runs

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_ROWS: Mapping[str, str] = {
    "codetr-tune": "it opens data and checkpoints by codetr-train's build_data and build_module",
}
"""Console commands that have no rows of their own, and why."""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> File:
    """A checkpoint of a run with auxiliary heads, whose data are there."""
    folder = tmp_path_factory.mktemp("run")
    write_split(folder / "data")
    overrides = ("data=coco", "data.num_workers=0", f"data.root={folder / 'data'}")
    return File(save_tiny(folder / "model.safetensors", *overrides))


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """See ``watched``."""
    with watched(tmp_path, monkeypatch) as path:
        yield path


def entries(record: Mapping[str, Any]) -> dict[str, PLACE]:
    """Places of a checkpoint's record by name."""
    config = record["config"]
    return {
        "the list of classes": ("class_names",),
        "a name of a class": ("class_names", 0),
        "category_ids": ("category_ids",),
        "preprocessing": ("preprocessing",),
        "preprocessing.resize": ("preprocessing", "resize"),
        "preprocessing.mean": ("preprocessing", "mean"),
        **{key: ("config", key) for key in config},
        "model.detector": ("config", "model", "detector"),
        "model.detector.backbone": ("config", "model", "detector", "backbone"),
        "model.detector.decoder.layer": ("config", "model", "detector", "decoder", "layer"),
        "a scheme": ("config", "scheme", "collaborative"),
        "an auxiliary head": ("config", "aux_heads", "atss"),
        "a logger": ("config", "logger", "csv"),
        "a callback": ("config", "callbacks", "progress"),
        "data.source": ("config", "data", "source"),
        "data.train_augmentation": ("config", "data", "train_augmentation"),
        "data.teachers": ("config", "data", "teachers"),
        "evaluation.postprocess": ("config", "evaluation", "postprocess"),
        "augmentation.eval": ("config", "augmentation", "eval"),
        "a key that nothing reads": ("config", "planted"),
        "another part of the record": ("planted",),
    }


def payloads() -> Iterator[Any]:
    """Texts, nodes, and both in lists and as keys, again and again."""
    wrapped = [[TEXTS[0]], [NODES[0]], {TEXTS[1]: NODES[1]}, {"a": [{"b": NODES[0]}]}]
    return itertools.cycle([*TEXTS, *NODES, *wrapped])


class Table:
    """What became of what was planted, by command: refused in one line, or used without it."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary
        self.cells: dict[str, list[int]] = {}

    def open(self, command: str, entry: Callable[[Any], None], what: Any, label: str) -> str | None:
        """Open ``what``, and look for the canary."""
        said = opened(entry, what)
        assert not self.canary.exists(), f"{command}: {label} was executed"
        cell = self.cells.setdefault(command, [0, 0])
        cell[said is None] += 1
        return said

    @property
    def total(self) -> int:
        return sum(map(sum, self.cells.values()))

    def show(self, title: str) -> None:
        """For ``pytest -s``, and for the report of a failure."""
        print(f"\n{title}: {self.total} opened, 0 executed")
        for command, (refused, used) in self.cells.items():
            print(f"  {command}: {refused} refused, {used} ignored")


@pytest.mark.parametrize("rounds", [1, pytest.param(13, marks=pytest.mark.slow)])
def test_records_of_checkpoints(file: File, tmp_path: Path, canary: Path, rounds: int) -> None:
    """Every entry through every command that opens a checkpoint, with another payload each time;
    in 13 rounds, with all of them.
    """
    table, drawn = Table(canary), payloads()
    clean = file.write(tmp_path / "model.safetensors", file.record)
    for command, entry in CHECKPOINT.items():
        assert opened(entry, clean) is None, command
    for _ in range(rounds):
        for name, place in entries(file.record).items():
            payload = next(drawn)
            path = file.write(clean, planted(file.record, place, payload))
            for command, entry in CHECKPOINT.items():
                table.open(command, entry, path, f"{payload} as {name}")
    table.show("entries of records")
    assert table.total == rounds * len(entries(file.record)) * len(CHECKPOINT)
    assert all(min(cell) > 0 for cell in table.cells.values()), "refused some, ignored some"


class Runs:
    """Runs when it is unpickled."""

    def __init__(self, how: int) -> None:
        self.how = how

    def __reduce__(self) -> tuple[Any, ...]:
        if self.how == 0:
            return (importlib.import_module(HOME).run, ())  # only its name is pickled
        if self.how == 1:
            return (__import__, (HOME,))
        return (eval, (f"__import__('{HOME}').run()",))


def pickles(folder: Path, name: str, canary: Path) -> Iterator[Path]:
    """Checkpoint files that would run code, in every layout."""
    for how in range(3):
        for part in ("state_dict", "codetr", "callbacks"):
            content = {"state_dict": {}, "codetr": {}, "callbacks": {}, part: Runs(how)}
            for archive in (True, False, None):
                path = folder / name
                if archive is None:
                    path.write_bytes(pickle.dumps(content))
                else:
                    torch.save(content, path, _use_new_zipfile_serialization=archive)
                sys.modules.pop(HOME, None)
                canary.unlink(missing_ok=True)  # writing has imported it
                yield path


def test_pickles(tmp_path: Path, canary: Path) -> None:
    """Everything that reads a checkpoint or weights, whatever the file's name ends with."""
    table = Table(canary)
    readers: dict[str, Opener] = {
        **CHECKPOINT,
        **OFFICIAL,
        "codetr-train ckpt_path=": lambda path: _resume(path),
        "model.backbone.weights": lambda path: _discard(read_weights(path)),
    }
    for name in ("model.safetensors", "model.ckpt", "model.pth"):
        for path in pickles(tmp_path, name, canary):
            for command, entry in readers.items():
                table.open(command, entry, path, name)
    table.show("pickles")
    used = {command: cell[1] for command, cell in table.cells.items() if cell[1]}
    assert used == {}


def _discard(_: object) -> None:
    """What was read is not looked at."""


def _resume(path: Path) -> None:
    _discard(resume_path(str(path), RunFolder(path.parent)))


def test_what_is_planted_would_run(tmp_path: Path, canary: Path) -> None:
    for path in pickles(tmp_path, "model.ckpt", canary):
        if zipfile.is_zipfile(path):
            torch.load(path, weights_only=False)
            assert canary.exists()


def texts() -> list[Any]:
    """What would run where it is resolved, built, or loaded as YAML with tags."""
    return [*TEXTS, *NODES, {TEXTS[0]: TEXTS[1]}, [NODES[0]]]


TAGS = (
    f"!!python/object/apply:{HOME}.run []",
    f"!!python/name:{HOME}.run",
    f"!!python/module:{HOME}",
    f"!!python/object:{HOME}.run {{}}",
    *(json.dumps(text) for text in TEXTS),
)
"""The same in YAML."""


def numbers_of(folder: Path) -> None:
    """A sweep's page up to its figures."""
    sweep = group_runs(read_runs(folder))
    for part in (facts, table_of, summary):
        part(sweep)


def test_folders_of_runs_and_sweeps(tmp_path: Path, canary: Path) -> None:
    """job.json, config.yaml, multirun.yaml, metrics.json and metrics.csv, read for a page and by a
    sweep that goes on.
    """
    table, folder = Table(canary), tmp_path / "sweep"
    run = folder / "0"
    run.mkdir(parents=True)

    jobs = plan([["seed=1"], ["seed=2"]], 0, folder)
    state = {"fingerprint": jobs[0].fingerprint, "overrides": ["seed=1"], "swept": {"seed": 1}}

    def goes_on(_: Path) -> None:
        _discard([job.label for job in earlier(folder, 1)])
        require_own_folders(jobs)
        _discard([job.finished() for job in jobs])

    readers: dict[str, Opener] = {
        "scripts/sweep_report.py": numbers_of,
        "codetr-train -m": goes_on,
    }
    good = {
        "job.json": json.dumps(state),
        "config.yaml": "seed: 1\naux_heads: {atss: {}}\n",
        "multirun.yaml": "hydra: {}\n",
        "metrics.json": json.dumps({"AP": 0.5, "steps": 10}),
        "metrics.csv": "step,val/AP\n9,0.5\n",
    }

    def places_of(name: str) -> Iterator[str]:
        if name.endswith(".json"):
            for key, text in itertools.product(json.loads(good[name]), texts()):
                for value in (text, [text], {"seed": text}):
                    yield json.dumps({**json.loads(good[name]), key: value})
        elif name.endswith(".yaml"):
            for key, text in itertools.product(("seed", "aux_heads", "swept", "hydra"), TAGS):
                yield f"{good[name]}{key}: {text}\n"
                yield f"{key}: {text}\n"
                yield f"{key}: [{text}]\n"
        else:
            for text in TEXTS:
                yield f"step,{text}\n9,0.5\n"
                yield f"step,val/AP\n9,{text}\n"

    for planted_name in good:
        for name, content in good.items():
            (run / name).write_text(content)
            (folder / "multirun.yaml").write_text(good["multirun.yaml"])
        for content in places_of(planted_name):
            (run / planted_name).write_text(content)
            if planted_name == "multirun.yaml":
                (folder / planted_name).write_text(content)
            for command, entry in readers.items():
                table.open(command, entry, folder, content)
    table.show("folders of runs")
    assert all(min(cell) > 0 for cell in table.cells.values())


def test_records_of_studies(tmp_path: Path, canary: Path) -> None:
    """What scripts/study.py reads beside runs."""
    table = Table(canary)
    kept = {"swept": {"a": 1}, "seed": 1, "heads": None, "overrides": [], "metrics": {"AP": 0.5}}
    record = {**kept, "val/AP": [[1, 0.5]], "commit": "a", "hardware": "b"}
    look = {"number": "a: b", "variant": "c", "seed": 1, "value": 0.5}
    found = {
        "checkpoints": {"a": str(tmp_path / "a.ckpt")},
        "rows": [{"checkpoint": "a", "x": 1.5}],
    }
    files: dict[str, tuple[Opener, Any, PLACE]] = {
        "benchmarks/study/NAME.json": (
            lambda path: _discard(read_record(path)),
            {"runs": [record]},
            ("runs", 0),
        ),
        "analyses/NAME.json": (
            lambda path: _discard(read_looks(path)),
            {"looks": [look]},
            ("looks", 0),
        ),
        "--analysis DIR": (
            lambda path: _discard(read_analyses(path.parent)),
            found,
            ("rows", 0),
        ),
    }
    folder = tmp_path / "records"
    folder.mkdir()
    for what, (entry, content, place) in files.items():
        inner = content
        for key in place:
            inner = inner[key]
        for key, text in itertools.product([*inner, None], texts()):
            where = place if key is None else (*place, key)
            path = folder / "a.json"
            path.write_text(json.dumps(planted(content, where, text)))
            table.open(f"scripts/study.py {what}", entry, path, f"{text} at {where}")
    table.show("records of studies")


def test_annotations_and_teachers(tmp_path: Path, canary: Path) -> None:
    """Data of others: COCO files, YOLO's data.yaml, boxes of teachers."""
    table, root = Table(canary), tmp_path / "data"
    write_split(root)
    path = root / "annotations/instances_train2017.json"
    good = json.loads(path.read_text())
    clean = load_annotations(path)
    for group, text in itertools.product(("images", "annotations", "categories"), texts()):
        for key in good[group][0]:
            path.write_text(json.dumps(planted(good, (group, 0, key), text)))
            table.open("codetr-inspect", lambda p: _discard(load_annotations(p)), path, str(text))
    boxes = tmp_path / "teacher.json"
    result = {"image_id": 1, "category_id": 3, "bbox": [0, 0, 9, 9], "score": 0.5}
    for key, text in itertools.product(result, texts()):
        for content in ([{**result, key: text}], {"1": [{**result, key: text}]}, text):
            boxes.write_text(json.dumps(content))
            table.open(
                "codetr-train data.teachers=",
                lambda p: _discard(read_results(p, clean)),
                boxes,
                str(text),
            )
    yolo = tmp_path / "yolo"
    for part in ("train", "valid"):
        (yolo / part / "labels").mkdir(parents=True)
        (yolo / part / "images").mkdir()
        (yolo / part / "images/a.png").write_bytes((root / "train2017/a.png").read_bytes())
        (yolo / part / "labels/a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    for key, tag in itertools.product(("names", "path", "train", "nc"), TAGS):
        (yolo / "data.yaml").write_text(f"names: [a]\n{key}: {tag}\n")
        for number, text in enumerate((tag, f"[{tag}]", f"{{0: {tag}}}")):
            (yolo / "data.yaml").write_text(f"{key}: {text}\n")
            source = CustomFolder(cache=tmp_path / f"cache{number}", format="yolo")
            table.open("codetr-train data=custom", lambda p, s=source: _discard(s(p)), yolo, text)
    table.show("data")


def test_folders_of_hubs(file: File, tmp_path: Path, canary: Path) -> None:
    """config.json beside weights: ours is not read, that of transformers is plain JSON."""
    table = Table(canary)
    path = file.write(tmp_path / "model.safetensors", file.record)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(
            "eval",
            [
                "experiment=co_deformable_detr_one_stage_r50_1x_coco",
                "checkpoint=x",
                "num_classes=3",
            ],
        )
    for key in ("model_type", "library_name", "id2label", "preprocessing", "backbone", "auto_map"):
        for text in texts():
            content = {"model_type": "deformable_detr", key: text}
            (tmp_path / "config.json").write_text(json.dumps(content))
            for command in ("codetr.Predictor.from_pretrained", "codetr-predict"):
                table.open(command, CHECKPOINT[command], path, f"{text} as {key}")
            table.open(
                "codetr-predict huggingface:",
                lambda p: _discard(open_checkpoint(f"huggingface:{p.parent}", cfg)),
                path,
                f"{text} as {key}",
            )
    table.show("folders of hubs")


def test_tables_of_published_weights(tmp_path: Path, canary: Path) -> None:
    table, path = Table(canary), tmp_path / "zoo.yaml"
    for key, tag in itertools.product(("url", "experiment", "ap", "sha256", "overrides"), TAGS):
        for text in (tag, f"[{tag}]"):
            path.write_text(f"models:\n  a:\n    page: https://example.org\n    {key}: {text}\n")
            table.open("codetr-zoo", lambda p: _discard(list(read_table(p))), path, text)
    table.show("tables of weights")


def test_every_console_command_is_in_the_table() -> None:
    """By its name at the beginning of a row."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    rows = [*CHECKPOINT, *OFFICIAL, "codetr-inspect", "codetr-zoo"]
    told = {row.split()[0] for row in rows}
    assert scripts.keys() <= told | WITHOUT_ROWS.keys()
    own = Path(__file__).read_text()
    assert all(f'"{name}' in own for name in ("codetr-inspect", "codetr-zoo"))
