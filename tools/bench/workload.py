"""What whole models are measured with: image size, batch, precision, and a batch of such images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from codetr.boxes import xyxy_to_cxcywh
from codetr.errors import UserError
from codetr.models.ops import avoid_cudnn_attention, use_msda
from codetr.models.ops.cpu_memory import keep_freed_memory
from codetr.structures import Batch, ImageInfo, Images, Targets
from codetr.training.trainer import use_tf32
from tools.bench.options import OnDevice, option
from tools.parity.rules import make_inputs

CLASSES = 80
BOXES = 10
"""In every image."""
SMALLEST = 32
GIB = 2**30
PRECISIONS = {
    "cpu": {"fp32": "float32 on the CPU", "bf16": "bf16 autocast on the CPU"},
    "cuda": {
        "fp32": "float32 with products in TF32 on CUDA",
        "bf16": "bf16 autocast, what stays float32 with products in TF32, on CUDA",
    },
}
"""What the precisions mean with the settings of ``configure_process``."""
SIZES = {"cpu": (512, 640), "cuda": (800, 1333)}


@dataclass(frozen=True, kw_only=True)
class ModelOptions(OnDevice):
    """Options of benchmarks that run whole models."""

    height: int | None = option(None, "of the images, pixels; 512 on the CPU, 800 on CUDA")
    width: int | None = option(None, "of the images, pixels; 640 on the CPU, 1333 on CUDA")
    batch: int = option(1, "images in a batch")
    precision: Literal["fp32", "bf16"] = option("fp32", "bf16: under autocast, for all models")
    msda: str = option("auto", "who computes deformable attention, as train.py's ops.msda")
    memory: bool = option(True, "measure peak memory too, on the CPU in a fresh process each")
    overrides: tuple[str, ...] = option((), "of the configurations, as for train.py")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = SIZES[self.device]
        return self.height or height, self.width or width

    @property
    def words(self) -> str:
        """The same for a title."""
        height, width = self.size
        images = "1 image" if self.batch == 1 else f"{self.batch} images"
        return f"{images} of {height} x {width}, {PRECISIONS[self.device][self.precision]}"

    def autocast(self) -> torch.autocast:
        """The context that forward passes and losses run in."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")


def configure_process(options: ModelOptions) -> str:
    """Apply the settings that train.py applies to a whole process; returns a sentence on the
    backend of our deformable attention.
    """
    use_tf32("auto")
    avoid_cudnn_attention()
    if options.device == "cpu":
        keep_freed_memory()  # as train.py and eval.py do
    return f"Our deformable attention: {use_msda(options.msda, options.torch_device)}."


def make_batch(options: ModelOptions) -> Batch:
    """Images of noise without padding, on the device, with ``BOXES`` boxes each.

    Raises UserError for images that are too small, and for none of them.
    """
    height, width = options.size
    if min(height, width) < SMALLEST or options.batch < 1:
        raise UserError(
            f"--height {height} --width {width} --batch {options.batch}: give at least "
            f"{SMALLEST} pixels per side and 1 image"
        )
    count = options.batch
    pixels, boxes, labels = make_inputs(
        range(1, count + 1), [(height, width)] * count, [BOXES] * count, CLASSES
    )
    size = torch.tensor([width, height]).float()
    sizes = torch.tensor([[height, width]]).repeat(count, 1)
    targets = tuple(
        Targets(
            boxes=xyxy_to_cxcywh(torch.from_numpy(corners)) / size.repeat(2),
            labels=torch.from_numpy(names),
            weights=torch.ones(len(names)),
            size=size,
        )
        for corners, names in zip(boxes, labels, strict=True)
    )
    images = Images(
        pixels=torch.from_numpy(pixels),
        padding=torch.zeros(count, height, width, dtype=torch.bool),
        sizes=sizes,
        padded_sizes=sizes,
    )
    info = ImageInfo(image_id=0, original_size=(height, width), scale=(1.0, 1.0))
    batch = Batch(images=images, targets=targets, infos=(info,) * count)
    return batch.to(options.torch_device)
