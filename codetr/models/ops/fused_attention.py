"""Which of PyTorch's kernels may compute attention among queries."""

from __future__ import annotations

import torch


def avoid_cudnn_attention() -> None:
    """Keep cuDNN from computing attention in this process.

    cuDNN compiles a plan for every new shape, which takes the host tens of
    milliseconds; the number of decoder queries differs from step to step, that of a Swin
    transformer's windows from image to image. PyTorch's own kernels need no plan. On Hopper
    cuDNN would be chosen first from PyTorch 2.11 on, and with masks there are reports of NaN
    gradients (pytorch issue 196678).
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
