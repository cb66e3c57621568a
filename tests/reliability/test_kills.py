"""Runs of the true command that are killed and resumed equal those that were not, to the bit."""

import random
import re
import shlex
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from runs import RANKS, Place, differences, interrupt, kept_step, kill, outcome, wait_until

Whole = Callable[..., dict[str, Any]]


def test_killed_after_a_step_checkpoint(place: Place, whole: Whole) -> None:
    running = place.start()
    wait_until(lambda: kept_step(place.run) >= 2, running)
    kill(running)
    done = place.train()
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resuming from" in done.stdout
    assert differences(outcome(place.run), whole()) == []


@pytest.mark.parametrize(
    "signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_stopped_within_an_epoch(place: Place, whole: Whole, signum: signal.Signals) -> None:
    """The line that it ends with is a command that continues it."""
    place = replace(place, options=tuple(o for o in place.options if "checkpointing" not in o))
    running = place.start("data.num_workers=2")
    wait_until((place.run / "metrics.csv").is_file, running)
    done = interrupt(running, signum)
    assert done.returncode == 128 + signum
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("stopped by")]
    assert "Traceback" not in done.stderr
    found = re.fullmatch(
        rf"stopped by {signum.name}, kept at step (\d) in (.*): continue with `(.*)`", line
    )
    assert found is not None, line
    assert int(found[1]) == kept_step(place.run)
    assert shlex.split(found[3])[2:] == [
        *place.options,
        "data.num_workers=2",
        "name=run",
        "ckpt_path=last",
    ]
    assert place.train("data.num_workers=2").returncode == 0
    assert differences(outcome(place.run), whole()) == []


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("seed", range(10))
def test_killed_twice_at_random_moments(place: Place, whole: Whole, seed: int, ranks: int) -> None:
    """With -9 first, then by any of the three signals."""
    more = RANKS if ranks == 2 else ()
    place = replace(place, options=(*place.options, *more))
    expected = whole(*more)
    draw = random.Random(10 * ranks + seed)
    for signum in (signal.SIGKILL, draw.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])):
        before = kept_step(place.run)
        running = place.start()
        while running.running and kept_step(place.run) == before:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 1.0))
        if running.running:
            interrupt(running, signum)
    done = place.train()
    assert done.returncode == 0, done.stderr[-3000:]
    assert differences(outcome(place.run), expected) == []
