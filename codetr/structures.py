"""The values that travel between the parts of a detector and its training schemes.

All are frozen dataclasses with keyword-only fields, and know how to move themselves to a device.
Shape letters: B images, Q queries, N boxes, M candidates, K classes, C channels, S positions,
L levels, P pairs.

Boxes are ``cxcywh`` relative to the image (0 to 1) unless a name says otherwise
(``boxes_xyxy_px``: corners in pixels).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from codetr.classification import SIGMOID, Classification
from codetr.masks import Masks, paste
from codetr.tensor_struct import TensorStruct

T = TypeVar("T", bound=TensorStruct)


@dataclass(frozen=True, kw_only=True)
class Images(TensorStruct):
    """A padded batch of normalised images.

    ``pixels`` (B, 3, H, W); ``padding`` (B, H, W) bool, True where there is no image; ``sizes``
    (B, 2) int64, the valid (height, width) of each image; ``padded_sizes`` (B, 2) int64, each
    image's own size after padding it to the size divisor, before batching (dense heads use
    anchors up to there).
    """

    pixels: Tensor
    padding: Tensor
    sizes: Tensor
    padded_sizes: Tensor

    def __len__(self) -> int:
        return self.pixels.shape[0]


@dataclass(frozen=True, kw_only=True)
class DetectionTokens(TensorStruct):
    """Tokens that pass through a backbone together with the image patches and become queries.

    ``content`` (B, Q, C); ``position`` (Q, D): learned position embedding, the same for all images,
    None where it is part of the content.
    """

    content: Tensor
    position: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Pyramid(TensorStruct):
    """Feature maps, fine to coarse: ``maps[l]`` is (B, C_l, H_l, W_l), ``strides[l]`` in pixels;
    ``detection``: detection tokens of the backbone, if it has any.
    """

    maps: tuple[Tensor, ...]
    strides: tuple[int, ...]
    detection: DetectionTokens | None = None

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of every level, as Python integers."""
        return tuple((m.shape[-2], m.shape[-1]) for m in self.maps)

    def tokens(self) -> Tensor:
        """(B, S, C) the vectors of all cells, level by level, row by row."""
        return torch.cat([m.flatten(2).transpose(1, 2) for m in self.maps], dim=1)

    def masks(self, padding: Tensor) -> list[Tensor]:
        """``padding`` (B, H, W) bool of the images at the cells of each map: (B, H_l, W_l)."""
        return [resize_mask(padding, shape) for shape in self.shapes]

    def memory(self, masks: Sequence[Tensor]) -> Memory:
        """The cells as tokens; ``masks`` (B, H_l, W_l) bool are True in padding."""
        dtype = torch.float64 if self.maps[0].dtype == torch.float64 else torch.float32
        valid = [(~mask).to(dtype) for mask in masks]
        ratios = [torch.stack([v[:, 0].mean(1), v[:, :, 0].mean(1)], dim=-1) for v in valid]
        return Memory(
            tokens=self.tokens(),
            padding=torch.cat([mask.flatten(1) for mask in masks], dim=1),
            shapes=self.shapes,
            strides=self.strides,
            valid_ratios=torch.stack(ratios, dim=1),
            detection=self.detection,
        )


def resize_mask(mask: Tensor, shape: tuple[int, int]) -> Tensor:
    """``mask`` (B, H, W) bool with another (H, W), by the nearest neighbour."""
    return F.interpolate(mask[:, None].float(), size=shape, mode="nearest")[:, 0].bool()


@dataclass(frozen=True, kw_only=True)
class Memory(TensorStruct):
    """The encoder's output: all levels flattened and concatenated.

    ``tokens`` (B, S, C); ``padding`` (B, S) bool, True = no image there; ``shapes`` the (H, W) of
    each level, S = sum of H*W; ``strides`` pixels per cell of each level; ``valid_ratios``
    (B, L, 2), the share (x, y) of each level's width and height that is image; ``position``
    (B, S, C), added to the keys of attention, None where the decoder needs none; ``detection``, the
    detection tokens of the backbone, None where it has none.
    """

    tokens: Tensor
    padding: Tensor
    shapes: tuple[tuple[int, int], ...]
    strides: tuple[int, ...]
    valid_ratios: Tensor
    position: Tensor | None = None
    detection: DetectionTokens | None = None

    def pyramid(self) -> Pyramid:
        """The tokens reshaped to feature maps (B, C, H_l, W_l)."""
        levels = self.tokens.split([h * w for h, w in self.shapes], dim=1)
        maps = tuple(
            level.transpose(1, 2).unflatten(2, shape)
            for level, shape in zip(levels, self.shapes, strict=True)
        )
        return Pyramid(maps=maps, strides=self.strides)


@dataclass(frozen=True, kw_only=True)
class Targets(TensorStruct):
    """The boxes that supervise one image.

    ``boxes`` (N, 4) cxcywh in [0, 1]; ``labels`` (N,) int64, contiguous class indices;
    ``weights`` (N,), 1 for ground truth, a teacher's score for its boxes; ``size`` (2,) float,
    the (width, height) in pixels of the area that boxes are relative to (the image; the whole
    canvas under LSJ); ``masks`` (N, H, W) uint8, 1 on the object, of the image padded to its own
    ``Images.padded_sizes``, None where nothing learns them.
    """

    boxes: Tensor
    labels: Tensor
    weights: Tensor
    size: Tensor
    masks: Tensor | None = None

    def __len__(self) -> int:
        return self.labels.shape[0]

    @property
    def size_whwh(self) -> Tensor:
        """(4,) width, height, width, height in pixels."""
        return self.size.repeat(2)


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """The origin of an image, for mapping predictions back to it.

    ``image_id`` of the annotation file; ``original_size`` (height, width) of the file;
    ``scale`` (x, y): resized size over original size, per axis; ``path`` for messages.
    """

    image_id: int
    original_size: tuple[int, int]
    scale: tuple[float, float]
    path: str = ""


@dataclass(frozen=True, kw_only=True)
class BoxCounts:
    """The number of boxes of each image of a batch: of the ground truth and of each teacher."""

    targets: tuple[int, ...]
    teachers: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Batch(TensorStruct):
    """One training or evaluation batch of B images.

    ``targets[b]`` is the ground truth of image b without crowd regions; ``teachers[t][b]`` are
    the boxes of teacher t on image b; ``infos[b]`` is the origin of image b. ``step`` has the
    counts of all batches that this process accumulates for one optimiser step, including this one;
    empty if it is the only one.
    """

    images: Images
    targets: tuple[Targets, ...]
    teachers: tuple[tuple[Targets, ...], ...] = ()
    infos: tuple[ImageInfo, ...] = ()
    step: tuple[BoxCounts, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def counts(self) -> BoxCounts:
        """The counts of this batch."""
        return BoxCounts(
            targets=tuple(map(len, self.targets)),
            teachers=tuple(tuple(map(len, boxes)) for boxes in self.teachers),
        )

    def mean_over_step(self, count: Callable[[BoxCounts], float]) -> float:
        """The mean of ``count`` over the batches of the optimiser step."""
        step = self.step or (self.counts,)
        return sum(map(count, step)) / len(step)


@dataclass(frozen=True, kw_only=True)
class Predictions(TensorStruct):
    """``logits`` (B, Q, W), whose width W for K classes is that of ``classification``; ``boxes``
    (B, Q, 4) cxcywh in [0, 1].
    """

    logits: Tensor
    boxes: Tensor
    classification: Classification = SIGMOID

    @property
    def num_classes(self) -> int:
        """K, without background."""
        return self.classification.num_classes(self.logits)

    def scores(self, dtype: torch.dtype | None = None) -> Tensor:
        """Detection scores (B, Q, K) as in ``Classification``, computed in ``dtype`` (None: that of
        the logits).
        """
        logits = self.logits if dtype is None else self.logits.to(dtype)
        return self.classification.detection_scores(logits)


@dataclass(frozen=True, kw_only=True)
class Detections(TensorStruct):
    """The detections in one image, best score first.

    ``boxes_xyxy_px`` (n, 4) in pixels of the original image, or for an auxiliary head of the
    network's input; ``scores`` (n,) in (0, 1]; ``labels`` (n,) int64, class indices; ``cells``: the
    masks of the objects within their boxes, None without a mask head.
    """

    boxes_xyxy_px: Tensor
    scores: Tensor
    labels: Tensor
    cells: Masks | None = None

    def __len__(self) -> int:
        return self.labels.shape[0]

    def take(self: T, index: Tensor | slice) -> T:
        """The detections selected by ``index`` (indices, a boolean mask or a slice)."""
        return self.map(lambda tensor: tensor[index])

    def above(self, score: float) -> Detections:
        """The detections whose score is greater than ``score``."""
        return self.take(self.scores > score)

    def bitmaps(self, size: tuple[int, int]) -> Tensor:
        """The masks as bitmaps (n, H, W) bool of the image of ``size`` (height, width). Raises
        ValueError if the detections have no masks.
        """
        if self.cells is None:
            raise ValueError("these detections have no masks: they are of a model without any")
        return paste(self.cells.probabilities, self.boxes_xyxy_px, size)


@dataclass(frozen=True, kw_only=True)
class RawPredictions(TensorStruct):
    """As ``Predictions``, but with ``box_logits`` (B, S, 4), the logits of cxcywh boxes, +inf where
    no box is possible.
    """

    logits: Tensor
    box_logits: Tensor
    classification: Classification = SIGMOID

    def predictions(self) -> Predictions:
        """The predictions with boxes instead of their logits."""
        return Predictions(
            logits=self.logits,
            boxes=self.box_logits.sigmoid(),
            classification=self.classification,
        )


@dataclass(frozen=True, kw_only=True)
class Proposals(Predictions):
    """The encoder's predictions, with the ``anchors`` (B, S, 4) cxcywh in [0, 1] that the boxes
    refine; (1, 1, 1, 1) for tokens that cannot propose.
    """

    anchors: Tensor


@dataclass(frozen=True, kw_only=True)
class Tap(TensorStruct):
    """Intermediate features of a decoder layer, with that layer's prediction heads.

    ``hidden`` (B, Q, C); ``anchors`` (B, Q, 4 or 2) that the layer's boxes are relative to;
    ``read(hidden, anchors)`` returns predictions, which are computed only on this call.
    """

    hidden: Tensor
    anchors: Tensor
    read: Callable[[Tensor, Tensor], Predictions]


CROSS_ATTENTION = "cross_attention"
"""Name of the taps of the normalised output of a layer's cross-attention."""


@dataclass(frozen=True, kw_only=True)
class Queries(TensorStruct):
    """The decoder's input.

    ``content`` (B, Q, C); ``anchors`` (B, Q, 4) cxcywh in [0, 1] (or (B, Q, 2) centres);
    ``position`` (B, Q, C) fixed position embedding, None where the decoder derives it from the
    anchors anew in every layer; ``padding`` (B, Q) bool, True = not a query, None = all are;
    ``proposals`` the encoder's own predictions, where the queries were selected from them.
    """

    content: Tensor
    anchors: Tensor
    position: Tensor | None = None
    padding: Tensor | None = None
    proposals: Predictions | None = None


@dataclass(frozen=True, kw_only=True)
class Assignment(TensorStruct):
    """P pairs of a query and a target: ``image`` (P,), ``query`` (P,) index among the image's
    queries, ``target`` (P,) index into the concatenated targets of all images of the batch. Queries
    without a pair are background.
    """

    image: Tensor
    query: Tensor
    target: Tensor

    def __len__(self) -> int:
        return self.image.shape[0]


@dataclass(frozen=True, kw_only=True)
class QueryGroup(TensorStruct):
    """Queries that are decoded together and attend only to each other and to the groups in
    ``sees``.

    ``targets``: of this group, if they differ from the batch's; ``assignment``: if it is known
    beforehand (denoising, positive queries); ``blocked`` (Q, Q) bool: attention mask within the
    group, True where a row may not attend to a column.
    """

    name: str
    queries: Queries
    targets: tuple[Targets, ...] = ()
    assignment: Assignment | None = None
    blocked: Tensor | None = None
    sees: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.queries.content.shape[1]


@dataclass(frozen=True, kw_only=True)
class Decoded(TensorStruct):
    """The decoder's output for one group: ``layers`` from first to last; ``taps`` by name, one per
    layer, if the decoder has any.
    """

    layers: tuple[Predictions, ...]
    group: QueryGroup
    taps: Mapping[str, tuple[Tap, ...]] = field(default_factory=dict)

    @property
    def proposals(self) -> Predictions | None:
        """The encoder's predictions that the group was selected from, if any."""
        return self.group.queries.proposals


@dataclass(frozen=True, kw_only=True)
class Candidates(TensorStruct):
    """The boxes of one image that an auxiliary head assigned, for positive queries.

    ``boxes`` (M, 4) cxcywh in [0, 1], detached; ``labels`` (M,) with K = background;
    ``targets`` (M, 4) the assigned ground truth, cxcywh in [0, 1], zeros for background;
    ``features`` (M, C) the head's input features there, with gradient.
    """

    boxes: Tensor
    labels: Tensor
    targets: Tensor
    features: Tensor

    def __len__(self) -> int:
        return self.labels.shape[0]
