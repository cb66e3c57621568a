"""The commands of docs/study.md compose, and give each job the heads that its table says."""

import re
import shlex
from pathlib import Path

import pytest
from test_sweeps import PUBLISHED, SEEDS, jobs
from tiny import composed

PAGE = (Path(__file__).resolve().parents[2] / "docs/study.md").read_text("utf-8")
COMMANDS = re.findall(r"`python train\.py -m (.*?)`", PAGE)
COUNTS = dict(re.findall(r"`python train\.py -m (.*?)` \|.*\| (\d+) \|$", PAGE, re.MULTILINE))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_last_job_composes(command: str) -> None:
    told = shlex.split(command)
    sweep = next(o for o in told if o.startswith("sweep=")).removeprefix("sweep=")
    fixed = [o for o in told if not o.startswith("seed=")]
    cfg = composed([*fixed, "num_classes=80", *jobs(sweep)[-1]])
    heads = len(cfg.aux_heads) if "collaborative" in cfg.scheme else 0
    assert heads == PUBLISHED[sweep][-1]


@pytest.mark.parametrize("command", COUNTS)
def test_the_page_counts_the_runs(command: str) -> None:
    told = dict(o.split("=", 1) for o in shlex.split(command))
    own = jobs(told["sweep"])
    seeds = len(told["seed"].split(",")) if "seed" in told else 1
    assert not (seeds > 1 and told["sweep"] in SEEDS), "they would take the place of the file's"
    assert len(own) * seeds == int(COUNTS[command])


def test_published_recipes_are_swept_at_their_own_length() -> None:
    named = [c for c in COMMANDS if "experiment=" in c]
    assert len(named) == 7
    for command in named:
        told = [o for o in shlex.split(command) if o.startswith(("experiment=", "data.root="))]
        sweep = next(o for o in shlex.split(command) if o.startswith("sweep="))
        with_sweep, alone = (composed([*m, "num_classes=80"]) for m in ([*told, sweep], told))
        for group in ("data", "model", "schedule", "optimizer", "evaluation"):
            assert with_sweep[group] == alone[group]
