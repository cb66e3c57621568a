"""Official numbers of one head, and small random batches."""

import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from codetr.structures import Batch, Images, Pyramid, Targets


def load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_batch(
    sizes: Sequence[tuple[int, int]], boxes: Sequence[Tensor], labels: Sequence[Tensor]
) -> Batch:
    """A batch of images (h, w) with xyxy pixel boxes, padded to the largest size."""
    height, width = (max(s[axis] for s in sizes) for axis in (0, 1))
    valid = torch.tensor(sizes)
    padding = torch.ones(len(sizes), height, width, dtype=torch.bool)
    targets = []
    for image, (h, w) in enumerate(sizes):
        padding[image, :h, :w] = False
        size = torch.tensor([w, h], dtype=boxes[image].dtype)
        x1, y1, x2, y2 = boxes[image].unbind(1)
        cxcywh = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], 1)
        targets.append(
            Targets(
                boxes=cxcywh / size.repeat(2),
                labels=labels[image],
                weights=torch.ones(len(labels[image])),
                size=size,
            )
        )
    images = Images(
        pixels=torch.zeros(len(sizes), 3, height, width),
        padding=padding,
        sizes=valid,
        padded_sizes=valid,
    )
    return Batch(images=images, targets=tuple(targets))


def random_boxes(count: int, size: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    """(count, 4) xyxy px inside an image (h, w), each at least 4 px wide and high."""
    scale = torch.tensor([size[1], size[0]], dtype=dtype)
    low = torch.rand(count, 2, dtype=dtype) * (scale - 8)
    extent = 4 + torch.rand(count, 2, dtype=dtype) * (scale - low - 4)
    return torch.cat([low, low + extent], dim=1)


@pytest.fixture
def small_batch() -> Callable[..., tuple[Pyramid, Batch]]:
    """Three levels (strides 8, 16, 32) of 32 channels, and the given numbers of boxes."""

    def build(counts: Sequence[int], dtype: torch.dtype = torch.float32) -> tuple[Pyramid, Batch]:
        sizes = [(96, 128), (80, 100)][: len(counts)]
        boxes = [random_boxes(n, size, dtype) for n, size in zip(counts, sizes, strict=True)]
        labels = [torch.randint(5, (n,)) for n in counts]
        maps = tuple(
            torch.randn(len(counts), 32, math.ceil(96 / s), math.ceil(128 / s), dtype=dtype)
            for s in (8, 16, 32)
        )
        for level in maps:
            level.requires_grad_()
        return Pyramid(maps=maps, strides=(8, 16, 32)), make_batch(sizes, boxes, labels)

    return build


@dataclass(frozen=True)
class Golden:
    """One folder of official numbers, in float64."""

    io: dict[str, np.ndarray]
    stats: dict[str, Any]
    expected: dict[str, Any]
    keys: dict[str, Tensor]
    pyramid: Pyramid
    batch: Batch

    def close(self, name: str, value: Tensor, atol: float = 1e-5) -> None:
        """Compare with a stored array, which keeps every stride-th element of large ones."""
        wanted = torch.from_numpy(self.io[name])
        found = value.detach().flatten()[:: self.stats[name]["stride"]].to(wanted.dtype)
        torch.testing.assert_close(found, wanted.flatten(), atol=atol, rtol=1e-5, msg=name.__add__)

    def equal(self, name: str, value: Tensor) -> None:
        assert value.tolist() == self.io[name].tolist(), name

    def gradients(self, head: nn.Module, rename: Callable[[str], str]) -> None:
        """Gradient norms of every official parameter and of the maps."""
        ours = dict(head.named_parameters())
        assert len(ours) == len(self.keys)
        for key, norm in self.expected["grad_norms"].items():
            found = ours[rename(key)].grad.norm().item()
            assert found == pytest.approx(norm, rel=1e-5, abs=1e-10), key
        for level, features in enumerate(self.pyramid.maps):
            self.close(f"grad/feature{level}", features.grad, atol=1e-9)
            norm = self.expected["feature_grad_norms"][level]
            assert features.grad.norm().item() == pytest.approx(norm, rel=1e-5, abs=1e-10)

    def weights(self, rename: Callable[[str], str]) -> dict[str, Tensor]:
        return {rename(key): value for key, value in self.keys.items()}


@pytest.fixture
def golden(shared: Path) -> Callable[[str], Golden]:
    def load(name: str) -> Golden:
        folder = shared / "golden" / "heads" / name
        rules = load_module(shared / "golden" / "weights.py")
        inputs = load_module(shared / "golden" / "heads" / "inputs.py")
        info = json.loads((folder / "info.json").read_text())
        entries = json.loads((folder / "keys.json").read_text())["entries"]
        sizes = [tuple(size) for size in info["sizes"]]
        features = inputs.make_features(info["seeds"], info["batch_input_shape"])
        truth = [
            inputs.make_gt(seed, size, keep)
            for seed, size, keep in zip(info["seeds"], sizes, info["keep"], strict=True)
        ]
        return Golden(
            io=dict(np.load(folder / "io.npz")),
            stats=json.loads((folder / "stats.json").read_text()),
            expected=json.loads((folder / "losses.json").read_text()),
            keys={
                key: torch.from_numpy(rules.make_tensor(key, shape)).double()
                for key, shape, _ in entries
            },
            pyramid=Pyramid(
                maps=tuple(torch.from_numpy(f).double().requires_grad_() for f in features),
                strides=inputs.STRIDES,
            ),
            batch=make_batch(
                sizes,
                [torch.from_numpy(box).double() for box, _ in truth],
                [torch.from_numpy(label) for _, label in truth],
            ),
        )

    return load
