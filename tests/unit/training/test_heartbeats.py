"""What the heartbeats of a process mean to the others."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from warm import TIMEOUT_S

from codetr.training.heartbeats import (
    DONE,
    Heartbeat,
    HeartbeatFolder,
    Peer,
    Peers,
    exit_reason,
    last_beat,
    process_state,
)

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    """A process to be stopped and killed."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def beat_of(process: "subprocess.Popen[bytes]") -> Heartbeat:
    state = process_state(process.pid)
    return replace(Heartbeat.own(1, "run", None), pid=process.pid, started=state[1] if state else 0)


def seen(beat: Heartbeat | None, silent_s: float = 0.0, code: int | None = None) -> Peer:
    return Peer(rank=1, beat=beat, silent_s=silent_s, code=code)


def wait_for(process: "subprocess.Popen[bytes]", states: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        state = process_state(process.pid)
        if state is not None and state[0] in states:
            return
        time.sleep(0.01)


@needs_proc
def test_a_process_that_was_killed_is_gone(sleeper: "subprocess.Popen[bytes]") -> None:
    beat = beat_of(sleeper)
    assert seen(beat).lost() is None
    sleeper.kill()
    wait_for(sleeper, "Z")  # nobody has asked for its status
    assert "is gone" in str(seen(beat).lost())
    assert seen(beat, code=-9).lost() == "was killed by SIGKILL, as the out-of-memory killer does"
    sleeper.wait()
    assert "is gone" in str(seen(beat).lost())


@needs_proc
def test_a_reused_process_id_is_another_process() -> None:
    own = Heartbeat.own(1, "run", None)
    assert seen(own).lost() is None
    assert "is gone" in str(seen(replace(own, started=own.started + 1)).lost())
    assert seen(replace(own, started=own.started + 1, machine="elsewhere")).lost() is None


@needs_proc
def test_a_stopped_process_is_waited_for(sleeper: "subprocess.Popen[bytes]") -> None:
    beat = beat_of(sleeper)
    assert seen(beat).late(0, 9) is None
    sleeper.send_signal(signal.SIGSTOP)
    wait_for(sleeper, "T")
    assert seen(beat).lost() is None
    assert "is stopped" in str(seen(beat).late(0, 9))
    sleeper.send_signal(signal.SIGCONT)


def test_a_late_or_silent_process_is_waited_for() -> None:
    beat = replace(Heartbeat.own(1, "run", None), stage=5, at="batch 5")
    assert seen(beat, silent_s=8).late(5, 9) is None
    assert seen(beat, silent_s=8).late(4, 9) is None
    assert "is still at batch 5" in str(seen(beat).late(6, 9))
    assert "sends no heartbeat" in str(seen(beat, silent_s=10).late(5, 9))
    assert seen(None).late(0, 9) == "has not started yet"


def test_a_finished_process_is_not_waited_for() -> None:
    beat = Heartbeat.own(1, "run", None)
    done = seen(last_beat(beat, DONE, 0, reported=True), silent_s=99)
    assert (done.lost(), done.late(9, 1)) == (None, None)
    failed = seen(last_beat(beat, "KeyError: 3\nmore", 1, reported=False))
    assert failed.lost() == "ended: KeyError: 3"
    assert exit_reason(2) == "exited with status 2"


def test_heartbeats_of_another_run_are_ignored(tmp_path: Path) -> None:
    for name, rank in (("old", 0), ("old", 1), ("new", 0)):
        HeartbeatFolder(tmp_path / "ranks", name).put(Heartbeat.own(rank, name, None))
    (tmp_path / "ranks" / "2.json").write_text("{")
    (tmp_path / "ranks" / "3.json").write_text("{}")
    beats = HeartbeatFolder(tmp_path / "ranks", "new")
    assert beats.read().keys() == {0}
    beats.clear()
    assert not (tmp_path / "ranks").exists()
    assert beats.read() == {}


def test_processes_that_ended_earlier_are_ignored(tmp_path: Path) -> None:
    """Until it is there again, as another process or with another heartbeat."""
    before = [Heartbeat.own(rank, "run", None) for rank in range(4)]
    gone = replace(before[1], started=before[1].started + 1)
    earlier = HeartbeatFolder(tmp_path, "run")
    for beat in (last_beat(before[0], "stopped by SIGTERM", 143, reported=True), gone, *before[2:]):
        earlier.put(beat)
    beats = HeartbeatFolder(tmp_path, "run")
    beats.ignore_ended()
    assert beats.read().keys() == ({2, 3} if Path("/proc/self/stat").exists() else {1, 2, 3})
    beats.put(replace(before[0], pid=before[0].pid + 1))
    beats.put(last_beat(before[3], "KeyError: 1", 1, reported=False))
    assert beats.read()[0].ended is None
    assert beats.read()[3].ended == "KeyError: 1"


def test_only_the_first_claim_succeeds(tmp_path: Path) -> None:
    folders = [HeartbeatFolder(tmp_path / "ranks", "run") for _ in range(3)]
    assert [beats.claim("end") for beats in folders] == [True, False, False]
    assert folders[2].claim("other")


def test_without_a_folder_each_process_reports(tmp_path: Path) -> None:
    (tmp_path / "ranks").touch()
    folders = [HeartbeatFolder(tmp_path / "ranks", "run") for _ in range(2)]
    folders[0].put(Heartbeat.own(0, "run", None))
    assert [beats.claim("end") for beats in folders] == [True, True]


def test_silence_is_measured_by_the_own_clock(tmp_path: Path) -> None:
    """Clocks of other machines do not matter."""
    beats = HeartbeatFolder(tmp_path / "ranks", "run")
    peers = Peers(beats, 0, 3)
    beat = Heartbeat.own(1, "run", None)

    def silent(now: float) -> list[float]:
        return [peer.silent_s for peer in peers.poll(now, {})]

    assert silent(10) == [0, 0]
    beats.put(beat)
    assert silent(14) == [0, 4]
    assert silent(19) == [5, 9]
    beats.put(replace(beat, number=1))
    assert silent(20) == [0, 10]
    peers.reset_silence()
    assert silent(90) == [0, 0]
    assert silent(91) == [1, 1]
