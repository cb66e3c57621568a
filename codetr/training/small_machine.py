"""Choice of the fine-tuning recipe for machines without a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from codetr.overrides import is_within, key_of

LARGE, SMALL = "experiment=finetune", "experiment=finetune_small"
_CHOSEN = ("model", "checkpoint", "ckpt_path")
"""Keys that choose a model."""
_ON_CPU = ("trainer=cpu", "trainer.accelerator=cpu")


def has_gpu() -> bool:
    """Whether PyTorch finds a CUDA GPU."""
    import torch  # slow; not needed for --help

    return torch.cuda.is_available()


def print_once(text: str) -> None:
    """Print on the first process of a machine only; each process chooses the recipe itself."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(text)


def for_this_machine(
    arguments: Sequence[str],
    gpu: Callable[[], bool] = has_gpu,
    say: Callable[[str], object] = print_once,
) -> list[str]:
    """The ``arguments`` of a command, with the small fine-tuning recipe in place of the large one
    if no GPU would be used and the user chose no model; ``say`` reports it.
    """
    chosen = any(is_within(key_of(a), _CHOSEN) for a in arguments if "=" in a)
    if LARGE not in arguments or chosen:
        return list(arguments)
    if gpu() and not set(_ON_CPU).intersection(arguments):
        return list(arguments)
    say(
        f"no GPU is used: {SMALL} instead of {LARGE}, whose Co-DINO R50 at 800 pixels takes days "
        "on a CPU; model=co_dino keeps that"
    )
    return [SMALL if argument == LARGE else argument for argument in arguments]
