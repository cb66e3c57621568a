"""Train and use DETR-like detectors: ``codetr.load("best.ckpt")("image.jpg")``.

``load``, ``Predictor`` and ``train`` are fetched when first used: importing this package is quick.
"""

import os as _os
from importlib import import_module as _import_module

__version__ = "0.1.0"

# Large CPU tensors on huge pages (Linux): a fresh tensor costs a fifth of the page faults. Torch
# asks once, at its first tensor.
_os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

_HOMES = {
    "load": "codetr.inference.predictor",
    "Predictor": "codetr.inference.predictor",
    "train": "codetr.training.in_python",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'codetr' has no attribute '{name}'")
    return getattr(_import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
