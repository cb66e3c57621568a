"""A run of several processes ends when one is lost, and one of the others says so."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import environment
from omegaconf import OmegaConf
from warm import TIMEOUT_S, Warm

from codetr.training.heartbeats import HeartbeatFolder
from codetr.training.rank_monitor import RankMonitor, is_connection_error, waiting_limit_s

DELTA = {"_target_": "datetime.timedelta"}
SCRIPT = """
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from codetr.errors import UserError
from codetr.training.stopping import Stopped
from codetr.training.rank_monitor import RankMonitor

rank, limit_s, stage, what = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
environment = SimpleNamespace(
    main_address="here", main_port=1, creates_processes_externally=True
)
strategy = SimpleNamespace(cluster_environment=environment, launcher=None)
trainer = SimpleNamespace(global_rank=rank, world_size=3, callbacks=[], strategy=strategy)
with RankMonitor(trainer, Path("ranks"), limit_s, "do it again"):
    reached = trainer.callbacks[0]._reached
    for number in range(stage):
        reached(f"stage {number + 1}")
    while not Path("go").exists():
        time.sleep(0.01)
    if what == "user":
        raise UserError("x: no")
    if what == "other":
        raise KeyError("boom")
    if what == "closing":
        trainer.callbacks[0].on_exception(trainer, None, None)
        time.sleep(6)
    if what in ("closing", "stopped"):
        raise Stopped(15)
    if what == "connection":
        raise RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer")
    while what != "done" and not Path("over").exists():
        time.sleep(0.01)
"""
SIZE = 3


class Run:
    """Three processes, which wait for the file ``go``, and then do what they are told."""

    def __init__(self, folder: Path, what: Sequence[str], stages: Sequence[int], limit_s: float):
        self.folder = folder
        script = folder / "script.py"
        script.write_text(SCRIPT)
        self.processes = [
            Warm(
                ["python", str(script), str(rank), str(limit_s), str(stage), do],
                folder,
                environment(),
            )
            for rank, (do, stage) in enumerate(zip(what, stages, strict=True))
        ]
        beats = HeartbeatFolder(folder / "ranks", "here:1::::")
        deadline = time.monotonic() + TIMEOUT_S
        while {s.rank: s.stage for s in beats.read().values()}.keys() != set(range(SIZE)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        (folder / "go").touch()

    def ended(self) -> tuple[list[int], list[str]]:
        """Exit statuses, and what was told after which error, in all."""
        done = [process.ended(120) for process in self.processes]
        text = "".join(one.stderr for one in done)
        return [one.returncode for one in done], text.splitlines()


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Run]:
    def start(*what: str, stages: Sequence[int] = (1, 1, 1), limit_s: float = 600) -> Run:
        return Run(tmp_path, what, stages, limit_s)

    return start


def test_a_killed_process_ends_the_others_with_one_line(run: Callable[..., Run]) -> None:
    running = run("wait", "wait", "wait")
    os.kill(running.processes[1].pid, signal.SIGKILL)
    statuses, (line,) = running.ended()
    assert statuses == [1, -signal.SIGKILL, 1]
    assert line.startswith("error: rank 1 is gone: process ")
    assert " was killed, or crashed, after " in line
    assert line.endswith(": do it again")


@pytest.mark.parametrize(("size", "looks"), [(2, 230), (64, 28)])
def test_many_waiting_processes_read_less_often(
    size: int, looks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two minutes of waiting, of which the first five seconds do not count."""
    now = 0.0
    monkeypatch.setattr("codetr.training.rank_monitor.time.monotonic", lambda: now)
    launcher = SimpleNamespace(procs=None)
    trainer: Any = SimpleNamespace(
        global_rank=0, world_size=size, strategy=SimpleNamespace(launcher=launcher)
    )
    monitor = RankMonitor(trainer, tmp_path, 600, "do it again")
    judged = []

    def wait(seconds: float) -> bool:
        nonlocal now
        now += seconds
        return now > 120

    monkeypatch.setattr(monitor, "_over", SimpleNamespace(wait=wait))
    monkeypatch.setattr(monitor, "_put", lambda: None)
    monkeypatch.setattr(monitor, "_judge", lambda now, waited: judged.append(waited))
    monitor._run()
    assert looks <= len(judged) <= looks + 2
    assert min(judged) >= 5


def test_the_first_process_is_lost_like_others(run: Callable[..., Run]) -> None:
    running = run("wait", "connection", "connection")
    os.kill(running.processes[0].pid, signal.SIGKILL)
    statuses, (line,) = running.ended()
    assert statuses == [-signal.SIGKILL, 1, 1]
    assert line.startswith("error: rank 0 is gone")


@pytest.mark.parametrize("frozen", [0, 2])
def test_a_frozen_process_is_reported_and_then_ends_the_run(
    run: Callable[..., Run], frozen: int
) -> None:
    running = run("wait", "wait", "wait", limit_s=12)
    os.kill(running.processes[frozen].pid, signal.SIGSTOP)
    statuses, (said, line) = running.ended()
    assert statuses == [-signal.SIGKILL if rank == frozen else 1 for rank in range(SIZE)]
    assert "and ends the run after 12 s" in said
    for text in (said, line):
        assert f"rank {frozen} is stopped" in text


def test_a_process_that_hangs_is_named_by_where_it_is(run: Callable[..., Run]) -> None:
    running = run("wait", "wait", "wait", stages=(3, 2, 3), limit_s=8)
    statuses, (said, line) = running.ended()
    assert statuses[0] == statuses[2] == 1
    for text in (said, line):
        assert "at stage 3 for others" in text
        assert "rank 1 is still at stage 2" in text


def test_processes_that_wait_for_nobody_continue(run: Callable[..., Run]) -> None:
    """Slow is not lost: all are at the same place."""
    running = run("wait", "wait", "done", limit_s=4)
    time.sleep(6)
    (running.folder / "over").touch()
    assert running.ended() == ([0, 0, 0], [])
    assert not (running.folder / "ranks").exists()


def test_the_time_in_which_all_are_suspended_does_not_count(run: Callable[..., Run]) -> None:
    """Neither one that is ahead nor one that is behind has waited for the others."""
    running = run("wait", "wait", "wait", stages=(3, 2, 3), limit_s=10)
    for signum in (signal.SIGSTOP, signal.SIGCONT):
        for process in running.processes:
            os.kill(process.pid, signum)
        time.sleep(11 if signum == signal.SIGSTOP else 2)
    (running.folder / "over").touch()
    assert running.ended() == ([0, 0, 0], [])


def test_a_process_that_is_closing_its_loggers_is_not_ended(
    run: Callable[..., Run],
) -> None:
    statuses, lines = run("closing", "stopped", "stopped").ended()
    assert statuses == [1, 1, 1]  # of the script, which does not handle it
    assert sum(line.endswith("Stopped: stopped by SIGTERM") for line in lines) == 3
    assert not [line for line in lines if line.startswith("error: ")]


@pytest.mark.parametrize("what", [("wait", "user", "connection"), ("user", "user", "user")])
def test_a_user_error_is_reported_once(run: Callable[..., Run], what: Sequence[str]) -> None:
    """The script prints tracebacks: those of the error itself are counted."""
    statuses, lines = run(*what).ended()
    assert all(statuses)
    assert sum(line.endswith("UserError: x: no") for line in lines) == 1
    assert not [line for line in lines if line.startswith("error: ")]


@pytest.mark.parametrize("what", [("wait", "other", "connection"), ("other", "other", "other")])
def test_any_other_error_has_one_traceback(run: Callable[..., Run], what: Sequence[str]) -> None:
    statuses, lines = run(*what).ended()
    assert all(statuses)
    assert lines.count("KeyError: 'boom'") == 1
    told = [line for line in lines if line.startswith("error: ")]
    assert told == ["error: rank 1 ended: KeyError: 'boom': do it again"] * (what[0] == "wait")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer"), True),
        (RuntimeError("NCCL communicator was aborted on rank 0"), True),
        (RuntimeError("Timed out waiting 1800000ms for recv operation to complete"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("socket"), False),
    ],
)
def test_connection_errors_are_recognised(error: Exception, expected: bool) -> None:
    assert is_connection_error(error) == expected


@pytest.mark.parametrize(
    ("trainer", "seconds"),
    [
        ({"strategy": {"timeout": {"_target_": "datetime.timedelta", "minutes": 10}}}, 600),
        (
            {"strategy": {"timeout": {"_target_": "datetime.timedelta", "minutes": 1, "hours": 2}}},
            7260,
        ),
        ({"strategy": "ddp"}, 1800),
    ],
)
def test_the_limit_is_the_timeout_of_the_strategy(trainer: dict[str, Any], seconds: float) -> None:
    assert waiting_limit_s(OmegaConf.create({"trainer": trainer})) == seconds
