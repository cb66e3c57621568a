"""One training step and one evaluation pass of a whole experiment at full size.

python benchmarks/step.py [EXPERIMENT] [--height 512 --width 640] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch

from codetr.boxes import xyxy_to_cxcywh
from codetr.ops import use_msda
from codetr.parity.experiment import build_experiment
from codetr.parity.rules import make_inputs
from codetr.structures import Batch, Images, Targets, total_loss
from codetr.training.losses import training_losses

CLASSES = 80


def main() -> None:
    """Evaluate first: the peak memory of a process only rises."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("experiment", nargs="?", default="co_dino_5scale_r50_1x_coco")
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    attention = use_msda("auto", torch.device("cpu"))
    built = build_experiment(options.experiment, CLASSES)
    batch = make_batch(options.height, options.width)

    def evaluate() -> None:
        with torch.no_grad():
            built.detector.eval()(batch.images)

    def train() -> None:
        built.detector.train()
        losses = training_losses(built.detector, built.schemes, batch)  # type: ignore[arg-type]
        total_loss(losses).backward()
        built.detector.zero_grad(set_to_none=True)
        built.schemes.zero_grad(set_to_none=True)

    result = {
        "experiment": options.experiment,
        "image": [options.height, options.width],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "deformable attention": attention,
        "evaluation": measure(evaluate, options.repeats),
        "training step": measure(train, options.repeats),
    }
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def make_batch(height: int, width: int) -> Batch:
    """One image with ten boxes."""
    pixels, boxes, labels = make_inputs([1], [(height, width)], [10], CLASSES)
    size = torch.tensor([width, height]).float()
    sizes = torch.tensor([[height, width]])
    padding = torch.zeros(1, height, width, dtype=torch.bool)
    target = Targets(
        boxes=xyxy_to_cxcywh(torch.from_numpy(boxes[0])) / size.repeat(2),
        labels=torch.from_numpy(labels[0]),
        weights=torch.ones(len(labels[0])),
        size=size,
    )
    images = Images(
        pixels=torch.from_numpy(pixels), padding=padding, sizes=sizes, padded_sizes=sizes
    )
    return Batch(images=images, targets=(target,))


def measure(run: Callable[[], None], repeats: int) -> dict[str, float]:
    """Median seconds after one run to warm up, and the process's peak memory so far."""
    run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": sorted(seconds)[len(seconds) // 2], "peak_gib": round(peak, 2)}


if __name__ == "__main__":
    main()
