"""Workers outlive what stops a run, and end with it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.data import Dataset
from warm import TIMEOUT_S

from codetr.data.workers import SignalSafeLoader


class Processes(Dataset[int]):
    """Each item is the process that reads it."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        return os.getpid()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_workers_go_on_after_a_signal_to_all_processes(signum: signal.Signals) -> None:
    loader = SignalSafeLoader(Processes(), batch_size=1, num_workers=2, prefetch_factor=1)
    batches = iter(loader)
    workers = {int(next(batches)), int(next(batches))}
    assert os.getpid() not in workers
    for pid in workers:
        os.kill(pid, signum)
    assert {int(pid) for pid in batches} == workers
    del batches
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


HELD = """
from codetr.data.workers import SignalSafeLoader

batches = iter(SignalSafeLoader(range(8), num_workers=1, prefetch_factor=1))
print(int(next(batches)))
"""


def test_python_exits_while_a_loader_is_held() -> None:
    """Within an epoch, as after an error in a notebook."""
    ended = subprocess.run(
        [sys.executable, "-c", HELD], capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "0\n", "")
