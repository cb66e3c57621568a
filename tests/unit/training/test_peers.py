"""What the signs of a process mean to the others."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from codetr.training.peers import DONE, Board, Peer, Peers, Sign, fate, process_state, told

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    """A process to be stopped and killed."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def sign_of(process: "subprocess.Popen[bytes]") -> Sign:
    state = process_state(process.pid)
    return replace(Sign.own(1, "run", None), pid=process.pid, started=state[1] if state else 0)


def seen(sign: Sign | None, silent_s: float = 0.0, code: int | None = None) -> Peer:
    return Peer(rank=1, sign=sign, silent_s=silent_s, code=code)


def wait_for(process: "subprocess.Popen[bytes]", states: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        state = process_state(process.pid)
        if state is not None and state[0] in states:
            return
        time.sleep(0.01)


@needs_proc
def test_a_process_that_was_killed_is_gone(sleeper: "subprocess.Popen[bytes]") -> None:
    sign = sign_of(sleeper)
    assert seen(sign).lost() is None
    sleeper.kill()
    wait_for(sleeper, "Z")  # nobody has asked for its status
    assert "is gone" in str(seen(sign).lost())
    assert seen(sign, code=-9).lost() == "was killed by SIGKILL, as the out-of-memory killer does"
    sleeper.wait()
    assert "is gone" in str(seen(sign).lost())


@needs_proc
def test_a_number_that_is_given_again_is_another_process() -> None:
    own = Sign.own(1, "run", None)
    assert seen(own).lost() is None
    assert "is gone" in str(seen(replace(own, started=own.started + 1)).lost())
    assert seen(replace(own, started=own.started + 1, machine="elsewhere")).lost() is None


@needs_proc
def test_a_stopped_process_is_waited_for(sleeper: "subprocess.Popen[bytes]") -> None:
    sign = sign_of(sleeper)
    assert seen(sign).late(0, 9) is None
    sleeper.send_signal(signal.SIGSTOP)
    wait_for(sleeper, "T")
    assert seen(sign).lost() is None
    assert "is stopped" in str(seen(sign).late(0, 9))
    sleeper.send_signal(signal.SIGCONT)


def test_who_is_behind_or_silent_is_waited_for() -> None:
    sign = replace(Sign.own(1, "run", None), stage=5, at="batch 5")
    assert seen(sign, silent_s=8).late(5, 9) is None
    assert seen(sign, silent_s=8).late(4, 9) is None
    assert "is still at batch 5" in str(seen(sign).late(6, 9))
    assert "gives no sign of life" in str(seen(sign, silent_s=10).late(5, 9))
    assert seen(None).late(0, 9) == "has not come yet"


def test_who_has_ended_well_is_not_waited_for() -> None:
    sign = Sign.own(1, "run", None)
    done = seen(told(sign, DONE, 0, told=True), silent_s=99)
    assert (done.lost(), done.late(9, 1)) == (None, None)
    failed = seen(told(sign, "KeyError: 3\nmore", 1, told=False))
    assert failed.lost() == "ended: KeyError: 3"
    assert fate(2) == "exited with status 2"


def test_signs_of_another_run_are_not_seen(tmp_path: Path) -> None:
    for name, rank in (("old", 0), ("old", 1), ("new", 0)):
        Board(tmp_path / "ranks", name).put(Sign.own(rank, name, None))
    (tmp_path / "ranks" / "2.json").write_text("{")
    (tmp_path / "ranks" / "3.json").write_text("{}")
    board = Board(tmp_path / "ranks", "new")
    assert board.signs().keys() == {0}
    board.clear()
    assert not (tmp_path / "ranks").exists()
    assert board.signs() == {}


def test_who_has_ended_before_is_overlooked(tmp_path: Path) -> None:
    """Until it is there again, as another process or with another sign."""
    before = [Sign.own(rank, "run", None) for rank in range(4)]
    gone = replace(before[1], started=before[1].started + 1)
    earlier = Board(tmp_path, "run")
    for sign in (told(before[0], "stopped by SIGTERM", 143, told=True), gone, *before[2:]):
        earlier.put(sign)
    board = Board(tmp_path, "run")
    board.overlook_ended()
    assert board.signs().keys() == ({2, 3} if Path("/proc/self/stat").exists() else {1, 2, 3})
    board.put(replace(before[0], pid=before[0].pid + 1))
    board.put(told(before[3], "KeyError: 1", 1, told=False))
    assert board.signs()[0].ended is None
    assert board.signs()[3].ended == "KeyError: 1"


def test_one_process_is_the_first(tmp_path: Path) -> None:
    boards = [Board(tmp_path / "ranks", "run") for _ in range(3)]
    assert [board.first("end") for board in boards] == [True, False, False]
    assert boards[2].first("other")


def test_without_a_folder_each_process_speaks(tmp_path: Path) -> None:
    (tmp_path / "ranks").touch()
    boards = [Board(tmp_path / "ranks", "run") for _ in range(2)]
    boards[0].put(Sign.own(0, "run", None))
    assert [board.first("end") for board in boards] == [True, True]


def test_silence_is_counted_by_the_own_clock(tmp_path: Path) -> None:
    """Clocks of other machines do not matter."""
    board = Board(tmp_path / "ranks", "run")
    peers = Peers(board, 0, 3)
    sign = Sign.own(1, "run", None)

    def silent(now: float) -> list[float]:
        return [peer.silent_s for peer in peers.look(now, {})]

    assert silent(10) == [0, 0]
    board.put(sign)
    assert silent(14) == [0, 4]
    assert silent(19) == [5, 9]
    board.put(replace(sign, number=1))
    assert silent(20) == [0, 10]
    peers.forget()
    assert silent(90) == [0, 0]
    assert silent(91) == [1, 1]
