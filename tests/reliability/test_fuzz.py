"""Ten thousand malformed files and settings: each is used, or refused in one line."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accounts import require_accounts
from habits import WRITERS, scene
from omegaconf import OmegaConf
from openers import write_split
from PIL import Image
from planted import File, places, planted
from tiny_checkpoint import save_tiny
from variants import STRANGE, bytes_variant, deep, json_variant

import codetr
from codetr.checkpoints.experiment import compose_train
from codetr.data.annotations import load_annotations
from codetr.data.images import read_image
from codetr.data.teachers import read_results
from codetr.errors import UserError
from codetr.evaluation.ground_truth import read_ground_truth
from codetr.settings import check_settings
from tools.sweeps.runs import read_runs
from tools.sweeps.variants import group_runs

COUNTS = {
    "annotations": 3000,
    "folders": 3000,
    "images": 2000,
    "configurations": 1000,
    "records": 1000,
}
SECONDS = 5.0  # of processor time, for any folder
Inputs = Iterator[tuple[Callable[[], object], object]]
"""What is to be done with each input, and the input for the report of a failure."""


def annotations(folder: Path, draw: random.Random) -> Inputs:
    """COCO files for training and evaluation, boxes of teachers, and the files of runs."""
    write_split(folder)
    path = folder / "annotations/instances_train2017.json"
    coco = path.read_bytes()
    clean = load_annotations(path)
    boxes = [{"image_id": 1, "category_id": 3, "bbox": [0, 0, 9, 9], "score": 0.5}] * 3
    teacher, run = folder / "teacher.json", folder / "run"
    run.mkdir()
    job = {"fingerprint": "a", "overrides": ["seed=1"], "swept": {"seed": 1}, "finished": True}
    files: list[tuple[Path, bytes, Callable[[], object]]] = [
        (path, coco, lambda: load_annotations(path)),
        (path, coco, lambda: read_ground_truth(path, clean.classes)),
        (teacher, json.dumps(boxes).encode(), lambda: read_results(teacher, clean)),
        (run / "job.json", json.dumps(job).encode(), lambda: looked_at(run)),
        (run / "metrics.json", b'{"AP": 0.5, "steps": 10}', lambda: looked_at(run)),
        (run / "metrics.csv", b"step,val/AP\n9,0.5\n19,0.6\n", lambda: looked_at(run)),
        (run / "config.yaml", b'{"seed": 1, "aux_heads": {"a": {}}}', lambda: looked_at(run)),
    ]
    for file, content, read in itertools.cycle(files):
        changes = [bytes_variant] if file.suffix == ".csv" else [bytes_variant, json_variant]
        if file.suffix == ".json":
            changes.append(deep("["))
        variant = draw.choice(changes)(draw, content)
        file.write_bytes(variant)
        yield read, (file.name, variant[:2000])
        file.write_bytes(content)


def looked_at(run: Path) -> None:
    """As far as the page of a sweep does."""
    sweep = group_runs(read_runs(run))
    for variant in sweep.variants:
        variant.by_seed("AP")


def folders(folder: Path, draw: random.Random) -> Inputs:
    """Of each format, with habits of people: what is in them is used or named."""
    for number in itertools.count():
        seed = draw.randrange(2**32)
        kind = draw.choice(list(WRITERS))
        yield lambda: one_folder(folder / f"{number}", kind, seed), (kind, seed)  # noqa: B023


def one_folder(place: Path, kind: str, seed: int) -> None:
    """Drawn, read to the end, and removed."""
    draw, root = random.Random(seed), place / "root"
    found = scene(draw)
    root.mkdir(parents=True)
    WRITERS[kind](draw, found, root)
    start = time.process_time()
    try:
        require_accounts(kind, found, root, place / "cache")
    except AssertionError as error:
        raise AssertionError(f"{found.habits}: {error}") from error
    finally:
        assert time.process_time() - start < SECONDS, (kind, seed)
        shutil.rmtree(place)


def images(folder: Path, draw: random.Random) -> Inputs:
    """Of five formats, cut, damaged and exchanged."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    contents = []
    for ending in ("png", "jpg", "bmp", "webp", "tif"):
        path = folder / f"a.{ending}"
        Image.fromarray(pixels).save(path)
        contents.append((path, path.read_bytes()))
    while True:
        path, content = draw.choice(contents)
        variant = image_variant(draw, content)
        path.write_bytes(variant)
        yield lambda: read_image(path), (path.name, variant[:200])  # noqa: B023


def image_variant(draw: random.Random, content: bytes) -> bytes:
    """Cut, or with other bytes at some places, most of them in the header."""
    changed = bytearray(content)
    for _ in range(draw.randrange(1, 6)):
        end = draw.choice([40, len(changed)])
        changed[draw.randrange(min(end, len(changed)))] = draw.randrange(256)
    start = draw.randrange(len(content))
    return draw.choice([bytes(changed), content[:start], content[start:], bytes(changed)[:start]])


def configurations(folder: Path, draw: random.Random) -> Inputs:
    """Strange values of any setting, and now and then the one that it has."""
    base = compose_train([f"data.root={folder}"])
    OmegaConf.set_struct(base, False)
    tree: Any = OmegaConf.to_container(base, resolve=False)
    leaves = [(p, v) for p, v in places(tree) if p and not isinstance(v, dict | list)]
    values = [v for v in STRANGE if not isinstance(v, dict) and v != 10**400]
    while True:
        place, own = draw.choice(leaves)
        key, value = ".".join(map(str, place)), draw.choice([*values, own, own])
        cfg = deepcopy(base)
        yield lambda: changed(cfg, key, value), (key, value)  # noqa: B023


def changed(cfg: Any, key: str, value: Any) -> None:
    """As ``KEY=VALUE`` on the command line."""
    OmegaConf.update(cfg, key, value, merge=False)
    check_settings(cfg, [f"{key}={value}"])


def records(folder: Path, draw: random.Random) -> Inputs:
    """Strange values in the record of a checkpoint, and files that are damaged."""
    file = File(save_tiny(folder / "clean.safetensors"))
    path = file.write(folder / "model.safetensors", file.record)
    whole = path.read_bytes()
    chosen = [place for place, _ in places(file.record)]
    while True:
        if draw.random() < 0.5:
            place, value = draw.choice(chosen), draw.choice(STRANGE)
            value = "9" * 5000 if value == 10**400 else value
            file.write(path, planted(file.record, place, value))
            told: object = (place, value)
        else:
            start = draw.randrange(min(len(whole), draw.choice([64, 40_000, len(whole)])))
            noise = draw.randbytes(draw.randrange(1, 9))
            path.write_bytes(
                draw.choice([whole[:start], whole[:start] + noise + whole[start + 8 :]])
            )
            told = (start, noise)
        yield lambda: codetr.load(path, device="cpu"), told


@pytest.mark.slow
@pytest.mark.parametrize("kind", COUNTS)
def test_ten_thousand_malformed_inputs(kind: str, tmp_path: Path) -> None:
    require_used_or_refused(kind, tmp_path, COUNTS[kind])


@pytest.mark.parametrize("kind", COUNTS)
def test_malformed_inputs(kind: str, tmp_path: Path) -> None:
    """A few of the same."""
    require_used_or_refused(kind, tmp_path, 60)


def require_used_or_refused(kind: str, folder: Path, count: int) -> None:
    """Anything else, and a refusal of more than a line, is a failure. Prints the counts."""
    makers = {
        "annotations": annotations,
        "folders": folders,
        "images": images,
        "configurations": configurations,
        "records": records,
    }
    found: Counter[str] = Counter()
    failures: list[str] = []
    for use, told in itertools.islice(makers[kind](folder, random.Random(kind)), count):
        try:
            use()
            found["used"] += 1
        except UserError as error:
            found["refused"] += 1
            if "\n" in str(error) or len(str(error)) > 1000:
                failures.append(f"{told!r:.1500}: {error}")
        except Exception as error:
            failures.append(f"{told!r:.1500}: {type(error).__name__}: {error}")
    print(f"{kind}: {found['used']} used, {found['refused']} refused, {len(failures)} tracebacks")
    assert not failures, f"{len(failures)} of {count}, such as {failures[0]}"
    assert min(found["used"], found["refused"]) > 0, found
