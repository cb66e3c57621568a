"""Class-specific maps of regions, computed for one class per region."""

from __future__ import annotations

from torch import Tensor, nn


def maps_of_class(classifier: nn.Conv2d, features: Tensor, labels: Tensor) -> Tensor:
    """(R, H, W): channel ``labels[r]`` of the 1x1 ``classifier`` on ``features[r]`` (R, C, H, W).

    The other channels are not computed: with the 1203 classes of LVIS they would be nearly all of
    the work and memory of a mask head.
    """
    assert classifier.kernel_size == (1, 1)
    assert classifier.bias is not None
    weight, bias = classifier.weight[labels, :, 0, 0], classifier.bias[labels]
    maps = (weight[:, None] @ features.flatten(2)).squeeze(1) + bias[:, None]
    return maps.unflatten(1, features.shape[2:])
