"""Jobs as processes: in slots, beside each other, alone in their folder, and stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from warm import TIMEOUT_S

from codetr.errors import UserError
from codetr.training.sweeps.local import BUSY, LocalRunner, Slot, make_slots
from codetr.training.sweeps.process import Start, begin

ROOT = Path(__file__).resolve().parents[4]


def start(folder: Path, code: str) -> Start:
    return Start(command=(sys.executable, "-c", code), folder=folder, env=dict(os.environ))


def run(starts: list[Start], slots: tuple[Slot, ...]) -> dict[int, int]:
    codes: dict[int, int] = {}
    LocalRunner(slots)(starts, codes.__setitem__)
    return codes


def test_each_job_reports_its_own_status_and_failures_stop_nothing(tmp_path: Path) -> None:
    codes = "import sys; sys.exit({})"
    starts = [start(tmp_path / str(code), codes.format(code)) for code in (0, 3, 1)]
    assert run(starts, make_slots(1, None)) == {0: 0, 1: 3, 2: 1}
    assert run(starts, make_slots(2, None)) == {0: 0, 1: 3, 2: 1}


def test_jobs_run_in_parallel(tmp_path: Path) -> None:
    """Each of two jobs waits for a file of the other: one after another, they would fail."""
    meet = (
        "import sys, time; from pathlib import Path; own, other = map(Path, {!r}); own.touch()\n"
        "end = time.monotonic() + 120\n"
        "while not other.exists():\n"
        "    time.sleep(0.01)\n"
        "    time.monotonic() < end or sys.exit(1)"
    )
    files = (str(tmp_path / "a"), str(tmp_path / "b"))
    starts = [
        start(tmp_path / "0", meet.format(files)),
        start(tmp_path / "1", meet.format(files[::-1])),
    ]
    assert run(starts, make_slots(2, None)) == {0: 0, 1: 0}


def test_jobs_get_the_device_of_their_slot_and_write_to_their_folder(tmp_path: Path) -> None:
    code = "import os, time; time.sleep(0.3); print('on', os.environ['CUDA_VISIBLE_DEVICES'])"
    starts = [start(tmp_path / str(i), code) for i in range(4)]
    assert set(run(starts, make_slots(1, ["0,1", "2,3"])).values()) == {0}
    seen = [(tmp_path / str(i) / "console.txt").read_text().strip() for i in range(4)]
    assert set(seen) == {"on 0,1", "on 2,3"}
    assert set(seen[:2]) == set(seen), "both devices are used from the start"


def test_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 9)
    assert make_slots(1, None) == (Slot(env={}),)
    assert make_slots(4, None) == (Slot(env={"OMP_NUM_THREADS": "2"}),) * 4
    assert [slot.env["CUDA_VISIBLE_DEVICES"] for slot in make_slots(1, [0, 3])] == ["0", "3"]
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert make_slots(2, None) == (Slot(env={}),) * 2
    with pytest.raises(UserError, match=r"parallel=0"):
        make_slots(0, None)
    with pytest.raises(UserError, match="not both"):
        make_slots(2, [0])
    with pytest.raises(UserError, match=r"devices=all"):
        make_slots(1, "all")
    with pytest.raises(UserError, match="no GPU"):
        make_slots(1, [])


def test_a_job_that_still_runs_is_not_started_again(tmp_path: Path) -> None:
    slow = start(tmp_path / "0", "import time; time.sleep(60)")
    process = begin(slow, {}, console=False)
    try:
        with pytest.raises(UserError, match="another process is running this job"):
            begin(slow, {}, console=False)
        assert run([slow, start(tmp_path / "1", "")], make_slots(1, None)) == {0: BUSY, 1: 0}
    finally:
        process.kill()
        process.wait()
    assert begin(start(tmp_path / "0", ""), {}, console=True).wait() == 0


def test_jobs_end_with_the_sweep_and_have_the_time_to_save(tmp_path: Path) -> None:
    job = (
        "import signal, sys, time; from pathlib import Path\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "def save(*_): time.sleep(0.2); (folder / 'saved').touch(); sys.exit(1)\n"
        "signal.signal(signal.SIGTERM, save); (folder / 'ready').touch(); time.sleep(60)"
    )
    sweep = (
        "import os, sys, json; from pathlib import Path\n"
        "from codetr.training.sweeps.local import LocalRunner, make_slots\n"
        "from codetr.training.sweeps.process import Start\n"
        f"start = Start(command=(sys.executable, '-c', {job!r}), folder=Path({str(tmp_path)!r}),"
        " env=dict(os.environ))\n"
        "LocalRunner(make_slots(1, None))([start], lambda index, code: None)"
    )
    process = subprocess.Popen([sys.executable, "-c", sweep], cwd=ROOT)
    deadline = time.monotonic() + TIMEOUT_S
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=TIMEOUT_S) == 128 + signal.SIGTERM
    assert (tmp_path / "saved").exists()


def test_environment_of_the_job_is_kept(tmp_path: Path) -> None:
    code = f"import json, os; json.dump(os.environ['GROUP'], open({str(tmp_path / 'g')!r}, 'w'))"
    one = Start(command=(sys.executable, "-c", code), folder=tmp_path, env={"GROUP": "k"})
    assert begin(one, {}, console=True).wait() == 0
    assert json.loads((tmp_path / "g").read_text()) == "k"
