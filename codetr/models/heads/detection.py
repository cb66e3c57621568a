"""Class and box embeddings, one pair per decoder layer and one for the encoder's proposals."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codetr.boxes import logit
from codetr.classification import SIGMOID, Classification, Sigmoid
from codetr.errors import UserError
from codetr.models.layers import Mlp
from codetr.structures import Predictions, RawPredictions


class Embeddings(NamedTuple):
    """The two branches of one layer: ``classify`` (C to logits of K classes, interpreted by
    ``classification``) and ``regress`` (C to 4 offsets of the logits of a box).
    """

    classify: nn.Module
    regress: nn.Module
    classification: Classification = SIGMOID

    def __call__(self, hidden: Tensor, anchors: Tensor, eps: float = 1e-5) -> Predictions:
        """Predictions from ``hidden`` (B, Q, C); ``anchors`` and ``eps`` as in ``boxes``."""
        boxes = self.boxes(hidden, anchors, eps)
        return Predictions(
            logits=self.classify(hidden), boxes=boxes, classification=self.classification
        )

    def boxes(self, hidden: Tensor, anchors: Tensor, eps: float = 1e-5) -> Tensor:
        """(B, Q, 4) cxcywh in [0, 1]: ``anchors`` (B, Q, 4), or centres (B, Q, 2), refined by the
        offsets predicted from ``hidden`` (B, Q, C). ``eps`` clamps their inverse sigmoid.
        """
        offsets = self.regress(hidden).to(anchors.dtype)
        start = F.pad(logit(anchors, eps), (0, 4 - anchors.shape[-1]))  # points have no size
        return torch.sigmoid(offsets + start)

    def raw(self, hidden: Tensor, anchor_logits: Tensor) -> RawPredictions:
        """Predictions from ``hidden`` (B, S, C) for anchors given as the logits (B, S, 4) of their
        cxcywh.
        """
        logits = self.classify(hidden)
        offsets = self.regress(hidden).to(anchor_logits.dtype)
        return RawPredictions(
            logits=logits, box_logits=offsets + anchor_logits, classification=self.classification
        )


class DetectionHead(nn.Module):
    """A pair of embeddings for each of ``num_layers`` decoder layers, one before them if the head
    also predicts from the initial queries (``read_first``), and one for the encoder's proposals if
    ``two_stage``.

    Pairs share no parameters but have the same initial values, as in the official code, except that
    the logits of width and height of the first pair start at ``size_logit``: 0 where its anchors
    have a size, -2 where they are points (Deformable DETR). ``classification`` gives the number of
    logits for ``num_classes``.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int = 256,
        num_layers: int = 6,
        two_stage: bool = True,
        size_logit: float = 0.0,
        classification: Classification = SIGMOID,
        read_first: bool = False,
    ) -> None:
        super().__init__()
        self.classification = classification
        self.num_classes, self.two_stage = num_classes, two_stage
        self.num_layers = num_layers + int(read_first)
        count = self.num_layers + int(two_stage)
        classify, regress = _class_layer(dim, num_classes, classification), _box_layers(dim)
        self.classify = nn.ModuleList(deepcopy(classify) for _ in range(count))
        self.regress = nn.ModuleList(deepcopy(regress) for _ in range(count))
        with torch.no_grad():
            self.regress[0][-1].bias[2:] = size_logit  # type: ignore[index, operator]

    def layer(self, index: int) -> Embeddings:
        """The pair of layer ``index``, from 0 to ``num_layers`` - 1."""
        assert 0 <= index < self.num_layers
        return self._pair(index)

    @property
    def proposals(self) -> Embeddings:
        """The pair of the encoder's proposals. Raises UserError if there is none."""
        if not self.two_stage:
            raise UserError(
                "queries are selected from the encoder's proposals, but the head has no embeddings "
                "for these: set model.head.two_stage=true"
            )
        return self._pair(-1)

    def _pair(self, index: int) -> Embeddings:
        return Embeddings(self.classify[index], self.regress[index], self.classification)


class TiedDetectionHead(DetectionHead):
    """As ``DetectionHead``, but all decoder layers share one pair, held (and saved) once; only the
    encoder's proposals, if ``two_stage``, have their own (DINO; Deformable DETR without
    refinement).
    """

    def __init__(
        self,
        num_classes: int,
        dim: int = 256,
        num_layers: int = 6,
        two_stage: bool = True,
        size_logit: float = 0.0,
        classification: Classification = SIGMOID,
    ) -> None:
        super().__init__(num_classes, dim, 1, two_stage, size_logit, classification)
        self.num_layers = num_layers

    def layer(self, index: int) -> Embeddings:
        """The pair of all decoder layers."""
        assert 0 <= index < self.num_layers
        return self._pair(0)


def _class_layer(dim: int, num_classes: int, classification: Classification) -> nn.Linear:
    layer = nn.Linear(dim, classification.width(num_classes))
    if isinstance(classification, Sigmoid):
        nn.init.constant_(layer.bias, -math.log(99.0))  # prior probability 0.01
    return layer


def _box_layers(dim: int) -> Mlp:
    last = nn.Linear(dim, 4)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    layers = Mlp(dim, dim, dim, 4)
    layers[-1] = last
    return layers
