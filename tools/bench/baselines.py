"""Baselines that a user may have beside ours, and what to say where they are missing."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

COMPILED = "MultiScaleDeformableAttention"
"""What the Deformable-DETR repository's models/ops/setup.py builds."""


def has_transformers() -> bool:
    """Whether Hugging Face's transformers is installed."""
    return importlib.util.find_spec("transformers") is not None


NO_TRANSFORMERS = (
    "transformers is not installed: ours alone. `pip install 'codetr[bench]'` brings the baseline."
)


def find_compiled(device: str) -> tuple[ModuleType | None, str]:
    """The compiled op where it can run on ``device``, and a line about it."""
    try:
        found = importlib.import_module(COMPILED)
    except ModuleNotFoundError:
        return None, (
            f"{COMPILED}, the compiled op of the Deformable-DETR repository, was not found: build "
            "its models/ops to have it in this table."
        )
    except ImportError as error:  # built for another PyTorch
        return None, f"{COMPILED} was found but does not load: {' '.join(str(error).split())}"
    if device != "cuda":
        return None, f"{COMPILED} was found, but it runs on CUDA alone."
    return found, f"{COMPILED}: the compiled op of the Deformable-DETR repository, in float32."
