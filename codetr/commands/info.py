"""What a model costs: ``codetr-info experiment=NAME`` or ``codetr-info checkpoint=FILE``.

Prints parameters by part, multiply-adds, images per second and memory, for one image. Takes the
words of train.py that choose a model, or a checkpoint.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

from hydra.utils import instantiate
from torch import nn

from codetr.checkpoints.experiment import compose_train, without_initial_weights
from codetr.errors import UserError
from codetr.inference.finder import choose_device
from codetr.inference.info import measure
from codetr.inference.predictor import build_detector, open_content
from codetr.training.shell import one_line_errors, print_any_name

CHECKPOINT = "checkpoint="
CLASSES = 80
"""Of a model without data: COCO's."""
LANDSCAPE = (800, 1333)
"""Height and width where the recipe resizes to none."""


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("overrides", nargs="+", metavar="KEY=VALUE", help="as for train.py")
    parser.add_argument("--size", metavar="HEIGHTxWIDTH", help="default: the recipe's, landscape")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    parser.add_argument("--repeats", type=int, default=3, help="runs after one to warm up")
    options = parser.parse_intermixed_args()
    print_any_name()
    with one_line_errors():
        if options.repeats < 1:
            raise UserError(f"--repeats {options.repeats}: give 1 or more")
        device = choose_device(options.device)
        detector, resize = build(options.overrides)
        height, width = parse_size(options.size) if options.size else landscape(resize)
        cost = measure(detector.to(device).eval(), height, width, options.repeats)
        print("\n".join(cost.lines()))


def build(overrides: Sequence[str]) -> tuple[nn.Module, dict[str, Any]]:
    """The detector that the words choose, and its resize in evaluation. Raises UserError."""
    files = [word.removeprefix(CHECKPOINT) for word in overrides if word.startswith(CHECKPOINT)]
    if files:
        if len(overrides) > 1:
            raise UserError(f"{CHECKPOINT}{files[0]}: brings its own model: give nothing beside it")
        content = open_content(files[0])
        return build_detector(content, files[0]), content.record.preprocessing["resize"]
    cfg = compose_train([f"num_classes={CLASSES}", *overrides])
    return instantiate(without_initial_weights(cfg.model.detector)), dict(cfg.augmentation.eval)


def landscape(resize: dict[str, Any]) -> tuple[int, int]:
    """Height and width of what ``resize`` makes of a wide image."""
    canvas = resize.get("canvas", LANDSCAPE[0])
    return resize.get("short", canvas), resize.get("long", resize.get("canvas", LANDSCAPE[1]))


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of ``800x1333``. Raises UserError for anything else."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or min(map(int, match.groups())) < 1:
        raise UserError(f"--size {text}: give height and width in pixels, such as 800x1333")
    height, width = map(int, match.groups())
    return height, width
