"""The parts of the second stage that turn region features into classes and offsets, and into masks
(He et al. 2017, Mask R-CNN).

Official parameter names and ours. mmdet's ``Shared2FCBBoxHead`` and ``ConvFCBBoxHead``:
``shared_convs.i.conv`` and ``.gn`` are ``convs.i.conv`` and ``.norm``, ``shared_fcs.i`` are
``fcs.i``; ``fc_cls``, ``fc_reg`` are ``cls``, ``reg``. ``FCNMaskHead``: ``convs.i.conv`` and
``upsample`` are the same, ``conv_logits`` is ``classify``.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Protocol

from torch import Tensor, nn

from codetr.models.layers.class_maps import maps_of_class
from codetr.supervision.aux_heads.layers import conv_tower


class BoxHead(Protocol):
    """An ``nn.Module`` for region features of ``roi_size`` cells per side."""

    roi_size: int

    def __call__(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(R, C, roi_size, roi_size) to logits (R, K + 1), background last, and deltas
        (R, K, 4), or (R, 1, 4) if all classes share them.
        """
        ...


class SharedFcBoxHead(nn.Module):
    """``num_fcs`` hidden layers of width ``fc_dim`` that both branches share; offsets per class."""

    def __init__(
        self,
        *,
        num_classes: int,
        channels: int,
        fc_dim: int = 1024,
        num_fcs: int = 2,
        roi_size: int = 7,
    ) -> None:
        super().__init__()
        self.roi_size = roi_size
        widths = [channels * roi_size**2, *[fc_dim] * num_fcs]
        self.fcs = _hidden_layers(widths)
        self.cls = _branch(widths[-1], num_classes + 1, std=0.01)
        self.reg = _branch(widths[-1], num_classes * 4, std=0.001)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """See ``BoxHead``."""
        hidden = features.flatten(1)
        for layer in self.fcs:
            hidden = layer(hidden).relu()
        return self.cls(hidden), self.reg(hidden).unflatten(1, (-1, 4))


class ConvFcBoxHead(nn.Module):
    """``num_convs`` 3x3 convolutions with group norm and one hidden layer of width ``fc_dim``, all
    shared by both branches; one set of offsets for all classes.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        channels: int,
        fc_dim: int = 1024,
        num_convs: int = 4,
        roi_size: int = 7,
    ) -> None:
        super().__init__()
        self.roi_size = roi_size
        self.convs = conv_tower(channels, num_convs)
        for module in self.convs.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.fcs = _hidden_layers([channels * roi_size**2, fc_dim])
        self.cls = _branch(fc_dim, num_classes + 1, std=0.01)
        self.reg = _branch(fc_dim, 4, std=0.001)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """See ``BoxHead``; the deltas are (R, 1, 4)."""
        hidden = self.convs(features).flatten(1)
        for layer in self.fcs:
            hidden = layer(hidden).relu()
        return self.cls(hidden), self.reg(hidden).unflatten(1, (-1, 4))


class FcnMaskHead(nn.Module):
    """``num_convs`` 3x3 convolutions, a transposed one to twice the resolution, and one map per
    class: masks of ``2 * roi_size`` cells per side. ``weight`` is that of its loss.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        channels: int,
        num_convs: int = 4,
        roi_size: int = 14,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.roi_size, self.weight = roi_size, weight
        self.convs = conv_tower(channels, num_convs, normalised=False)
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.classify = nn.Conv2d(channels, num_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    @property
    def mask_size(self) -> int:
        """Cells per side of a mask."""
        return 2 * self.roi_size

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Logits (R, mask_size, mask_size) of class ``labels[r]`` in region r, from its features
        (R, C, roi_size, roi_size).
        """
        return maps_of_class(self.classify, self.upsample(self.convs(features)).relu(), labels)


def _hidden_layers(widths: list[int]) -> nn.ModuleList:
    layers = nn.ModuleList()
    for before, after in pairwise(widths):
        layer = nn.Linear(before, after)
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
        layers.append(layer)
    return layers


def _branch(channels: int, outputs: int, std: float) -> nn.Linear:
    layer = nn.Linear(channels, outputs)
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
    return layer
