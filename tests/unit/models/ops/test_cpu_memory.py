"""Memory that is kept is not asked for again."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import os, resource, sys
import torch
from codetr.models.ops.cpu_memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def fill():
    torch.ones(2**24), torch.ones(2**23)
for _ in range(20):  # until the heap is large enough
    fill()
before = faults()
for _ in range(5):
    fill()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_tensors_of_a_process_that_keeps_memory_cost_no_page_faults() -> None:
    def faults(choice: str) -> int:
        environment = {"THP_MEM_ALLOC_ENABLE": "0", "PATH": ""}
        command = [sys.executable, "-c", PROGRAM, choice]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return int(run.stdout)

    assert faults("keep") < 100
    assert faults("default") > 5000  # 5 times the larger one: glibc keeps up to 32 MiB by itself
