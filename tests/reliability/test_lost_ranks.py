"""One of two processes is frozen, killed, or fails: the run ends with one line, and resumes."""

import json
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runs import RANKS, Place, differences, kept_step, outcome, wait_until
from warm import TIMEOUT_S

from codetr.training.checkpoint_files import damage

pytestmark = pytest.mark.slow

FAILING = """
from lightning.pytorch import Callback
from codetr.errors import UserError

class Fails(Callback):
    def __init__(self, rank, kind):
        self.rank, self.kind = rank, kind

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 3 and self.rank in (trainer.global_rank, "all"):
            raise UserError("x: no") if self.kind == "user" else KeyError("boom")
"""
LIMIT_MINUTES = 1.5


def waiting(place: Place, *ranks: str) -> Place:
    """With two processes that wait a minute and a half for each other."""
    wait = f"trainer.strategy.timeout.minutes={LIMIT_MINUTES}"
    return replace(place, options=(*place.options, *ranks, wait))


@pytest.fixture
def ranks(place: Place) -> Place:
    """Of two processes of DDP."""
    return waiting(place, *RANKS)


def processes(run: Path) -> dict[int, int]:
    """Numbers of the processes of a run by rank."""
    return {
        int(path.stem): json.loads(path.read_text())["pid"] for path in run.glob("ranks/*.json")
    }


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def told(stderr: str) -> str:
    """The one line that the run has ended with."""
    assert "Traceback" not in stderr, stderr
    (line,) = [text for text in stderr.splitlines() if "error" in text.lower()]
    return line


def lose(place: Place, rank: int, signum: int) -> tuple[int, str, str]:
    """Send the signal to one process of a run that trains; status, stdout and stderr of its end."""
    running = place.start()
    wait_until(lambda: kept_step(place.run) >= 2, running)
    both = processes(place.run)
    assert both.keys() == {0, 1}
    os.kill(both[rank], signum)
    done = running.ended(TIMEOUT_S)
    assert not any(is_there(pid) for pid in both.values())
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("rank", "signum"), [(1, signal.SIGKILL), (1, signal.SIGSTOP), (0, signal.SIGSTOP)]
)
def test_a_rank_that_is_lost_is_named_and_the_run_resumes(
    ranks: Place, whole: Callable[..., dict[str, Any]], rank: int, signum: int
) -> None:
    status, stdout, stderr = lose(ranks, rank, signum)
    line = told(stderr)
    assert f"rank {rank} " in line
    assert line.endswith("name=run ckpt_path=last`")
    assert ranks.options[0] in line
    if signum == signal.SIGKILL:
        assert status == 1
        assert "rank 1 was killed by SIGKILL" in line
    else:
        assert status == (1 if rank else -signal.SIGKILL)
        assert f"rank {rank} is stopped" in line
        lines = (stdout + stderr).splitlines()
        said = [text for text in lines if "ends the run after 90 s" in text]
        assert len(said) == 1
        found = re.search(
            rf"rank {1 - rank} has waited (\d+) s at .*: rank {rank} is stopped", said[0]
        )
        assert found is not None, said[0]
        assert 30 * LIMIT_MINUTES <= int(found[1]) < 60 * LIMIT_MINUTES
    assert damage(ranks.run / "last.ckpt") is None
    assert ranks.train().returncode == 0
    assert not (ranks.run / "ranks").exists()
    assert differences(outcome(ranks.run), whole(*RANKS)) == []


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_is_lost_with_its_part_of_the_weights(
    place: Place, whole: Callable[..., dict[str, Any]], signum: int
) -> None:
    """The checkpoint holds all of them, and the state of the optimiser."""
    divided = ("trainer=fsdp", *RANKS[1:])
    place = waiting(place, *divided)
    status, _, stderr = lose(place, 1, signum)
    assert status == 1
    line = told(stderr)
    lost = "rank 1 was killed by SIGKILL" if signum == signal.SIGKILL else "rank 1 is stopped"
    assert lost in line
    assert line.endswith("name=run ckpt_path=last`")
    assert damage(place.run / "last.ckpt") is None
    assert place.train().returncode == 0
    assert differences(outcome(place.run), whole(*divided)) == []


@pytest.mark.parametrize("rank", [0, 1, "all"])
@pytest.mark.parametrize("kind", ["user", "other"])
def test_a_rank_that_fails_ends_the_run_with_its_error(
    ranks: Place, rank: int | str, kind: str
) -> None:
    (ranks.folder / "failing.py").write_text(FAILING)
    path = f"{ranks.folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    failing = f"+callbacks.fails={{_target_:failing.Fails,rank:{rank},kind:{kind}}}"
    done = ranks.start(failing, PYTHONPATH=path).ended(TIMEOUT_S)
    if kind == "user":
        assert done.returncode == 2
        assert told(done.stderr) == "error: x: no"
    else:
        assert done.returncode == 1
        assert done.stderr.count("KeyError: 'boom'\n") == 1
        lines = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
        if rank == 0:  # the command itself ends by its traceback, before others may have spoken
            assert len(lines) <= 1
        else:
            assert len(lines) == (rank == 1)
        for line in lines:
            assert line.startswith(f"error: rank {rank} ended: KeyError: 'boom': continue with `")
    assert damage(ranks.run / "last.ckpt") is None
    assert ranks.train().returncode == 0
